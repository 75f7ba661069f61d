"""Builds of an index that are not published: killed, or at work."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from index import versions
from index.base import files
from index.base.errors import VersionError
from index.writing.build import Staging
from index.writing.job import PLAN_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """An unfinished build: either one that was killed, or one in progress."""

    token: str
    """Name of its folder."""

    num_vectors: int
    """Vectors it is to have; 0 for an index of a training run."""

    pieces: str
    """Pieces of embeddings that are finished: "7 of 12"."""

    shards: str
    """Shards that are written."""

    added: str
    """Shards whose FAISS index is made."""

    written_s: float
    """Seconds since it last finished a piece."""


def list_attempts(out: Path) -> list[Attempt]:
    """Attempts to build the index at `out` that are not published."""
    attempts = []
    for token in files.list_folder(out / versions.STAGING):
        staging = Staging(out / versions.STAGING / token)
        try:
            plan = json.loads(files.read_text(staging.path_of(PLAN_FILE)))
            newest = max(path.stat().st_mtime for path in staging.folder.iterdir())
            int(plan["num_vectors"]), int(plan["pieces"]), int(plan["shards"]), plan["kind"]
        except (VersionError, ValueError, OSError, KeyError, TypeError):
            continue  # of a training run, removed just now, or damaged: the build that resumes writes it again
        finished = staging.list_finished()
        attempts.append(
            Attempt(
                token=token,
                num_vectors=plan["num_vectors"],
                pieces=f"{sum(name.startswith('piece-') for name in finished)} of {plan['pieces']}",
                shards=f"{sum(map(versions.is_shard_name, finished))} of {plan['shards']}",
                added=f"{sum(name.endswith('.faiss') for name in finished)} of {plan['shards'] if plan['kind'] != 'flat' else 0}",
                written_s=round(time.time() - newest, 1),
            )
        )
    return attempts
