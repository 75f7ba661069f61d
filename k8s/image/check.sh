#!/usr/bin/env bash
# check.sh: what a pod needs of this environment, asked as the pod's user: no root, a home to write to, the Ray of the
# manifests, and every library that a job loads.
set -euo pipefail
if [ "$(id -u)" = 0 ]; then
  echo "check.sh: this is root; pods run as 1000 (USER 1000 before it)" >&2
  exit 2
fi
: > "$HOME/.written" && rm "$HOME/.written"
fsl-dist --version
python - <<'PYTHON'
import re

import faiss, kubernetes, ray, torch, torchvision  # noqa: E401, F401
from cluster.jobs.kuberay.rendering import MANIFESTS

named = set(re.findall(r"rayVersion: (\S+)", "".join(p.read_text() for p in (MANIFESTS / "base").glob("*.yaml"))))
if named != {ray.__version__}:
    raise SystemExit(f"check.sh: the image has Ray {ray.__version__}, the manifests say {', '.join(sorted(named))}")
print(f"Ray {ray.__version__}, torch {torch.__version__}, FAISS {faiss.__version__}")
PYTHON
ray --version
