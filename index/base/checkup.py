"""The result of checking a folder: each damaged file with a possible repair, and the files without a checksum."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from index.base import checksums
from index.base.errors import FslDistError
from index.base.files import read_text, write_atomic

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Finding:
    """A damaged or missing file."""

    path: str
    """The file or folder."""
    problem: str
    """Description in one line."""
    repair: str
    """The possible repair in one line."""


@dataclass(slots=True)
class Checkup:
    """Collects the findings of the checks of one folder."""

    num_checked: int = 0
    """Number of files and groups of files that were read."""
    findings: list[Finding] = field(default_factory=list)
    unchecked: dict[Path, Callable[[], None]] = field(default_factory=dict)
    """Intact files without a checksum → function that adds one."""

    def add(self, path: Path, problem: str, repair: str) -> None:
        """Record a damaged file."""
        self.findings.append(Finding(str(path), " ".join(problem.split()), repair))

    def run(self, path: Path, repair: str, check: Callable[[], _Found]) -> _Found | None:
        """Return the result of `check`; if it raises an error of damaged files, record it and return None."""
        self.num_checked += 1
        try:
            return check()
        except (FslDistError, OSError) as error:
            self.add(path, str(error), repair)
            return None

    def json(self, path: Path, name: str) -> None:
        """Record an intact JSON file `path` without a checksum; `name` is what its checksum is bound to."""
        data, is_checked = checksums.decode_json(read_text(path), str(path), name)
        if not is_checked:
            self.unchecked[path] = lambda: write_atomic(path, checksums.encode_json(data, name))

    def lines(self, path: Path) -> None:
        """Record an intact JSONL log without checksums."""
        text = read_text(path)
        whole, _, rest = text.rpartition("\n")
        lines = [checksums.decode_json(line, str(path)) for line in whole.split("\n") if line]
        if not all(is_checked for _, is_checked in lines):
            encoded = "".join(checksums.encode_line(data) for data, _ in lines) + rest
            self.unchecked[path] = lambda: write_atomic(path, encoded.encode())

    def yaml(self, path: Path) -> None:
        """Record an intact YAML file without a checksum."""
        if not checksums.has_yaml_checksum(path):
            self.unchecked[path] = lambda: write_atomic(path, checksums.encode_yaml(read_text(path)))

    def write_checksums(self) -> list[Path]:
        """Add a checksum to every intact file that has none; return these files."""
        for write in self.unchecked.values():
            write()
        written, self.unchecked = list(self.unchecked), {}
        return written
