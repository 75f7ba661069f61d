"""The working folder of a pack, from which a killed pack resumes.

.OUT.partial/
  3f2a…/                 the pieces of one plan, by its fingerprint
    plan.json
    chunk-000000.kept    re-encoded images of a chunk of the source
    out/                 the data set so far: finished shards
    finished/            notes of the finished files (`index.base.pieces`)
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from fsl_dist.errors import DataError, FslDistError, RequestError
from index.base.files import list_folder, remove_folder, write_atomic
from index.base.pieces import WorkFolder, fingerprint_of

logger = logging.getLogger(__name__)

_PLAN = "plan.json"


class PackFolder(WorkFolder):
    """The folder with the pieces of one plan; workers get a copy."""

    __slots__ = ()

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def shards(self) -> Path:
        return self.out / "shards"

    def path_of(self, name: str) -> Path:
        """Path of a shard, or of any other file of this attempt."""
        return (self.shards if name.endswith(".tar") else self.folder) / name

    @classmethod
    @contextlib.contextmanager
    def open(cls, partial: Path, plan: Mapping[str, object]) -> Iterator["PackFolder"]:
        """Open the folder below `partial` for the pieces of `plan` (JSON values under user-visible names).

        It contains the finished pieces of an earlier attempt with an equal plan. Pieces of other plans are removed,
        with a warning that gives the reason. The caller holds a lock: one process at a time. At the end of the block
        `partial` is removed, also after a DataError or RequestError, whose cause is the source or the request. After
        anything else (an interrupt, a full disk, a killed worker) it is kept, so that the next attempt can resume.
        """
        work = cls(partial / fingerprint_of(plan)[:16])
        for name in list_folder(partial):
            if name != work.folder.name:
                logger.warning("an earlier try is discarded: %s", _explain_difference(partial / name, plan))
                remove_folder(partial / name)
                (partial / name).unlink(missing_ok=True)
        work.recover()
        work.shards.mkdir(parents=True, exist_ok=True)
        write_atomic(work.folder / _PLAN, json.dumps(plan).encode())
        try:
            yield work
        except (DataError, RequestError):
            remove_folder(partial)
            raise
        except FslDistError:  # its message already says that the next attempt resumes
            raise
        except BaseException:
            logger.warning(
                "stopped: finished pieces are kept in '%s'; the same command resumes with them", partial
            )
            raise
        remove_folder(partial)


def _explain_difference(folder: Path, plan: Mapping[str, object]) -> str:
    """Why the pieces in `folder` are not those of `plan`."""
    try:
        before = json.loads((folder / _PLAN).read_bytes())
        differing = [name for name in {**before, **plan} if before.get(name) != plan.get(name)]
    except (OSError, ValueError, TypeError, AttributeError):
        return f"'{folder}' has no plan"
    return f"it had another {', another '.join(differing)}"
