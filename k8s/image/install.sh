#!/usr/bin/env bash
# install.sh SOURCE PREFIX: installs the project at SOURCE, with the versions of its constraints.txt, in a virtual
# environment at PREFIX, which must be empty. Nothing is installed when a pod starts.
set -euo pipefail
source=$1 prefix=$2
if [ -e "$prefix" ] && [ -n "$(ls -A "$prefix")" ]; then
  echo "install.sh: $prefix is not empty" >&2
  exit 2
fi
python3 -m venv "$prefix"
pip=("$prefix/bin/python" -m pip --no-cache-dir --disable-pip-version-check)
# pip 23 cannot match some of the pins.
"${pip[@]}" install --quiet --upgrade "pip>=24"
"${pip[@]}" install --quiet --constraint "$source/constraints.txt" "$source[all]"
"${pip[@]}" check
