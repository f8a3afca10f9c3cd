#!/usr/bin/env bash
# Generates sdk/anthesis/v1 from protos/. The generator is an older grpcio-tools in an environment of its own: what it
# writes imports under protobuf 6 and 7, while the current one's output would refuse protobuf 6.
#   stubs.sh [OUT]    OUT defaults to sdk
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-sdk}
venv=.venv-stubs
if [ ! -x "$venv/bin/protoc-gen-mypy_grpc" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q 'grpcio-tools==1.76.0' 'protobuf==6.33.6' 'mypy-protobuf==5.1.0' 'types-protobuf==7.35.1.20260906' 'setuptools<81'
fi
mkdir -p "$out"
PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc -Iprotos \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" protos/anthesis/v1/*.proto
