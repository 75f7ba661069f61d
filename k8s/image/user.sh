#!/usr/bin/env bash
# user.sh: the user that all pods run as, 1000. Ubuntu's image has another of that number.
set -euo pipefail
if owner=$(getent passwd 1000); then
  userdel --remove "${owner%%:*}" 2>/dev/null
fi
useradd --uid 1000 --user-group --create-home --shell /bin/bash fsl
