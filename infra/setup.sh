#!/usr/bin/env bash
# Installs the project into $VENV, every version pinned by constraints.txt.
#   PYTHON       the interpreter (3.11 or newer)
#   VENV         the environment's folder
#   TORCH_INDEX  index with torch's CPU builds, used where there is no NVIDIA GPU
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check install -c constraints.txt)
torch=$(grep -E '^torch==' constraints.txt)

echo "Installing torch ..."
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  "${pip[@]}" "$torch"
elif ! "${pip[@]}" "$torch" --extra-index-url "$TORCH_INDEX" --retries 1 2>/dev/null; then
  echo "No CPU build of torch at $TORCH_INDEX (set TORCH_INDEX to name another index); taking the default build."
  "${pip[@]}" "$torch"
fi
echo "Installing the platform ..."
"${pip[@]}" setuptools
"${pip[@]}" -e sdk -e '.[all]'
echo "Fetching the licence texts ..."
"$venv/bin/python" -m infra.licences
echo "Compiling the CPU operators ..."
"$venv/bin/python" -m bloom.cpu >/dev/null || echo "The engine will compute in plain torch, which is several times slower on a CPU."
