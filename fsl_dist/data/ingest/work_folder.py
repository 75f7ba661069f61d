"""The folder in which a pack works until it is complete, and from which a killed one goes on.

    .OUT.partial/
      3f2a…/                the plan: what the pieces are made of, by its hash
        plan.json
        checked/            what is known of a chunk of images, and those that were re-encoded
        out/                finished shards, as they will lie in OUT
        unfinished/         files that are being written

A piece is there once its file is renamed into its place, so whatever is there is whole.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fsl_dist.errors import DataError, RequestError
from index.base.files import list_folder, new_token, remove_folder

logger = logging.getLogger(__name__)

_PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Where the pieces of one plan lie; workers get a copy."""

    path: Path

    @property
    def checked(self) -> Path:
        return self.path / "checked"

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def _unfinished(self) -> Path:
        return self.path / "unfinished"

    @classmethod
    @contextlib.contextmanager
    def open(cls, partial: Path, plan: Mapping[str, object]) -> Iterator["WorkFolder"]:
        """The folder below `partial` for the pieces of `plan` (JSON values by what a user calls them).

        What an earlier try finished by an equal plan is there; that of other plans is removed, with a line that says
        why. Only one process at a time: hold a lock. At the block's end `partial` is removed, also after a DataError or
        RequestError: source or request cannot serve. After anything else (an interrupt, a full disk, a killed worker)
        it stays, for the next try to go on from.
        """
        text = json.dumps(plan, sort_keys=True)
        work = cls(partial / hashlib.sha256(text.encode()).hexdigest()[:16])
        for name in list_folder(partial):
            if name != work.path.name:
                logger.warning("an earlier try is thrown away: %s", _explain_difference(partial / name, plan))
                remove_folder(partial / name)
                (partial / name).unlink(missing_ok=True)
        remove_folder(work._unfinished)
        for folder in (work.checked, work.out, work._unfinished):
            folder.mkdir(parents=True, exist_ok=True)
        with work.replacing(work.path / _PLAN) as file:
            file.write(text.encode())
        try:
            yield work
        except (DataError, RequestError):
            remove_folder(partial)
            raise
        remove_folder(partial)

    @contextlib.contextmanager
    def replacing(self, path: Path, *, is_forced: bool = False) -> Iterator[IO[bytes]]:
        """A file to write, which takes its place at `path` at the block's end, on the disk if `is_forced`."""
        unfinished = self._unfinished / f"{path.name}.{new_token()}"
        try:
            with unfinished.open("xb") as file:
                yield file
                if is_forced:
                    file.flush()
                    os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def log_reuse(what: str, there: int, total: int) -> None:
    """Say how many of `total` pieces are `there` from an earlier try, if any."""
    if there:
        logger.info("going on: %d of %d %s", there, total, what)


def _explain_difference(folder: Path, plan: Mapping[str, object]) -> str:
    """Why the pieces in `folder` are not those of `plan`."""
    try:
        before = json.loads((folder / _PLAN).read_bytes())
        differing = [name for name in {**before, **plan} if before.get(name) != plan.get(name)]
    except (OSError, ValueError, TypeError, AttributeError):
        return f"'{folder}' holds no plan"
    return f"it had another {', another '.join(differing)}"
