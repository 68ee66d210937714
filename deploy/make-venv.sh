#!/usr/bin/env bash
# Make a virtual environment at $1 with $PYTHON (3.11 or newer); on Debian as root, install what venv needs if it is missing.
set -euo pipefail

folder=$1
python=${PYTHON:-python3}

if [[ -x $folder/bin/python ]] && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
  exit 0
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "expertmesh needs Python 3.11 or newer; '$python' is not. Name another one: PYTHON=python3.12 make ..." >&2
  exit 2
fi
echo "making $folder with $("$python" --version)"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null
  else
    echo "'$python' cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2
    exit 2
  fi
fi
mkdir -p "$(dirname "$folder")"
"$python" -m venv --clear "$folder"
