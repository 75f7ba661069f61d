"""Work in pieces that survives a kill; index builds and `pack` run on it.

A piece is a part of the work that is independent of all others and writes one file into the attempt's folder. The facts
that later pieces need are in its note, `finished/NAME.json`, with the CRC-32 of the file; the note has its own
checksum. A piece is finished once its note is written. A kill loses only the pieces in progress, at most one per
process: when the attempt is resumed, `WorkFolder.recover` compares every checksum, and pieces whose checksum changed
are rebuilt. The folder's name comes from the fingerprint of the plan, which is everything that decides the bytes, so
the same request finds it again.

A `Spread` runs the pieces: this process (`do_here`), processes of this machine (`index.base.processes.on_processes`) or
Ray actors (`index.writing.ray.on_ray`). The caller decides who may write to a folder, because the two callers need
different rules: a build of an index may be taken over by another machine, so a newer `Owner` fences off the older
one; a pack holds a lock on this machine, and its workers end with it.
"""

import contextlib
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from index.base import files
from index.base.errors import VersionError
from index.base.files import Owner
from index.base.stopping import Stopped, number_of

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done so far, and the total amount."""

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")

_NOTES = "finished"
_SUFFIX = ".json"


class Spread(Protocol):
    """Does pieces, in any order, and yields (position, result) of each once it is done."""

    def __call__(
        self, work: Callable[[_Piece], _Result], pieces: Sequence[_Piece]
    ) -> Iterator[tuple[int, _Result]]: ...


def do_here(work: Callable[[_Piece], _Result], pieces: Sequence[_Piece]) -> Iterator[tuple[int, _Result]]:
    """Run pieces sequentially in this process."""
    for position, piece in enumerate(pieces):
        yield position, work(piece)


def fingerprint_of(plan: Mapping[str, object]) -> str:
    """SHA-256 of a plan (JSON values), in hexadecimal digits."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """The folder of one attempt: its files, and a note for each finished file. Other processes get a copy."""

    folder: Path
    owner: Owner | None = None
    """Claim that every note checks; None: the folder is not fenced."""

    def path_of(self, name: str) -> Path:
        """Path of the file `name`."""
        return self.folder / name

    def finish(
        self, name: str, facts: Mapping[str, object] | None = None, *, crc32: int | None = None
    ) -> None:
        """Record that the file `name` is finished.

        facts: JSON values that later pieces need. crc32: checksum of the file; computed if it is None. Raises
        StaleOwnerError if another process has taken over.
        """
        if crc32 is None:
            crc32 = files.crc32_of_file(self.path_of(name))
        note = json.dumps({"crc32": crc32, **(facts or {})})
        self.check_owner()
        # Not forced to the disk: a note that a crash cut does not match its checksum, and costs a piece.
        with files.replacing(self._note_path(name), is_forced=False) as file:
            file.write(json.dumps({"note": note, "crc32": zlib.crc32(note.encode())}).encode())

    def facts_of(self, name: str) -> dict[str, Any] | None:
        """Return the note of a finished file, with its `crc32`; None if there is no valid note."""
        path = self._note_path(name)
        if not files.exists(path):
            return None
        try:
            signed = json.loads(files.read_text(path))
            if zlib.crc32(signed["note"].encode()) != signed["crc32"]:
                return None
            return json.loads(signed["note"])
        except (VersionError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def has(self, name: str) -> bool:
        """Whether a file is noted as finished."""
        return files.exists(self._note_path(name))

    def is_sound(self, name: str) -> bool:
        """Whether a file is finished and has the bytes it was finished with; reads all of them."""
        facts = self.facts_of(name)
        with contextlib.suppress(FileNotFoundError):
            return facts is not None and files.crc32_of_file(self.path_of(name)) == facts["crc32"]
        return False

    def list_finished(self) -> list[str]:
        """Names of the files that are noted as finished."""
        names = files.list_folder(self.folder / _NOTES)
        return [name.removesuffix(_SUFFIX) for name in names if not name.startswith(".")]

    def forget(self, name: str) -> None:
        """Drop the note of a file, which is then not finished."""
        files.remove_file(self._note_path(name))

    def recover(self) -> None:
        """Prepare an earlier attempt for resuming: remove half-written files,
        and notes of files whose bytes have changed.

        Reads every finished file.
        """
        files.remove_unfinished(self.folder)
        for name in self.list_finished():
            if not self.is_sound(name):
                logger.warning("%s of an earlier try is damaged and will be rebuilt", self.path_of(name))
                self.forget(name)

    def check_owner(self) -> None:
        """Raise StaleOwnerError where another process has taken over."""
        if self.owner is not None:
            self.owner.check()

    def do_missing(
        self,
        stage: str,
        work: Callable[[_Piece], object],
        pieces: Mapping[str, _Piece],
        *,
        spread: Spread = do_here,
        progress: Progress | None = None,
        size_of: Callable[[_Piece], int] = lambda piece: 1,
    ) -> int:
        """Run those of `pieces` (keyed by the file that each writes) that are not finished.

        size_of: the amount that a piece counts for `progress`. Returns the number of pieces that an earlier attempt had
        finished. Raises Stopped, which says what is kept, at Ctrl-C and SIGTERM.
        """
        missing = [piece for name, piece in pieces.items() if not self.has(name)]
        num_there = len(pieces) - len(missing)
        if num_there:
            logger.info("resumed: %d of %d pieces of stage '%s' were there", num_there, len(pieces), stage)
        total = sum(map(size_of, pieces.values()))
        done = total - sum(map(size_of, missing))
        finished = num_there
        try:
            for position, _ in spread(work, missing):
                finished += 1
                done += size_of(missing[position])
                if progress is not None:
                    progress(stage, done, total)
        except KeyboardInterrupt as error:
            raise Stopped(
                f"stopped in stage '{stage}': {finished} of its {len(pieces)} pieces are finished and kept in "
                f"{self.folder} (the same command resumes with them)",
                number_of(error),
            ) from None
        return num_there

    def _note_path(self, name: str) -> Path:
        return self.folder / _NOTES / (name + _SUFFIX)
