#!/usr/bin/env bash
# sbom.sh SOURCE PREFIX: writes PREFIX/sbom.cdx.json, the software bill of materials of the environment at PREFIX: each
# distribution with its version, licences and requirements, as CycloneDX 1.6. The program that writes it is not kept.
set -euo pipefail
source=$1 prefix=$2
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
pip=("$tool/bin/python" -m pip --no-cache-dir --disable-pip-version-check)
"${pip[@]}" install --quiet --upgrade "pip>=24"
"${pip[@]}" install --quiet --constraint "$source/constraints.txt" "cyclonedx-bom>=7.5,<8"
"$tool/bin/cyclonedx-py" environment --pyproject "$source/pyproject.toml" --spec-version 1.6 --output-reproducible \
  --output-file "$prefix/sbom.cdx.json" "$prefix/bin/python"
