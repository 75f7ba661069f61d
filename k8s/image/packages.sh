#!/usr/bin/env bash
# packages.sh PACKAGE…: the base's own packages, and nothing that they only recommend.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet
apt-get install --quiet --yes --no-install-recommends "$@" ca-certificates
rm -rf /var/lib/apt/lists/*
