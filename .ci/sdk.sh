#!/usr/bin/env bash
# The SDK as users get it: built as a wheel, installed into fresh environments with the newest protobuf major and with
# the one before. Checks that it is light, complete and imports. Under a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-.venv/bin/python} # its pip installs into the fresh environments, which then need none

cp -rL sdk "$work/sdk" # -L: links into bloom/ become files, and no build folder is left in the tree
rm -rf "$work/sdk/build" "$work"/sdk/*.egg-info
"$python" -m pip wheel -q --no-deps -w "$work" "$work/sdk"
wheel=$(echo "$work"/anthesis-*.whl)

check() { # PROTOBUF_MAJOR
  local protobuf=$1 venv=$work/protobuf$1
  "$python" -m venv --without-pip "$venv"
  "$python" -m pip --python "$venv/bin/python" install -q --no-compile "$wheel" "protobuf==$protobuf.*"
  "$python" -m pip --python "$venv/bin/python" check
  "$venv/bin/python" -W error - "$protobuf" <<'EOF'
import importlib.metadata as metadata
import importlib, pkgutil, sys

import anthesis
import google.protobuf

assert google.protobuf.__version__.split(".")[0] == sys.argv[1], google.protobuf.__version__
modules = [m.name for m in pkgutil.walk_packages(anthesis.__path__, "anthesis.") if not m.name.endswith("__main__")]
for name in modules:
    importlib.import_module(name)
assert "anthesis.bloom.plan" in modules and "anthesis.v1.job_pb2_grpc" in modules

heavy = {"torch", "fastapi", "starlette", "uvicorn", "flask", "streamlit", "sqlalchemy", "numpy", "transformers"}
installed = {distribution.name.lower() for distribution in metadata.distributions()}
assert not heavy & installed, f"the SDK pulls {heavy & installed}"

files = metadata.files("anthesis")
top = {file.parts[0] for file in files if ".." not in file.parts and not file.parts[0].endswith(".dist-info")}
assert top == {"anthesis"}, f"the SDK installs {top}"
assert not any(file.locate().is_symlink() for file in files)
assert {"anthesis/py.typed", "anthesis/v1/job_pb2.pyi", "anthesis/bloom/config.py"} <= {str(file) for file in files}
print(f"protobuf {google.protobuf.__version__}: {len(modules)} modules import, {len(installed)} packages installed")
EOF
  (cd "$work" && "$venv/bin/anthesis" plan 560m --json | grep '"parameters": 559214592' >/dev/null)
}

check 7 & newest=$!
check 6 & before=$!
wait $newest
wait $before
