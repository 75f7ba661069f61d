"""What a check of a folder found: each damaged file once, with what can be done, and files without a checksum."""

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
    """Something that is damaged or missing."""

    path: str
    """file or folder"""
    problem: str
    """one line"""
    repair: str
    """what can be done, one line"""


@dataclass(slots=True)
class Checkup:
    """Collects what checks of one folder find."""

    num_checked: int = 0
    """files and groups of files that were read"""
    findings: list[Finding] = field(default_factory=list)
    unchecked: dict[Path, Callable[[], None]] = field(default_factory=dict)
    """sound files without a checksum → what writes one"""

    def add(self, path: Path, problem: str, repair: str) -> None:
        """Note damage."""
        self.findings.append(Finding(str(path), " ".join(problem.split()), repair))

    def run(self, path: Path, repair: str, check: Callable[[], _Found]) -> _Found | None:
        """The result of `check`; None, noted, where it raises what damage raises."""
        self.num_checked += 1
        try:
            return check()
        except (FslDistError, OSError) as error:
            self.add(path, str(error), repair)
            return None

    def json(self, path: Path, name: str) -> None:
        """Note a sound JSON file `path` that has no checksum; `name` is what its checksum binds it to."""
        data, is_checked = checksums.decode_json(read_text(path), str(path), name)
        if not is_checked:
            self.unchecked[path] = lambda: write_atomic(path, checksums.encode_json(data, name))

    def lines(self, path: Path) -> None:
        """The same for a log of JSON lines."""
        text = read_text(path)
        whole, _, rest = text.rpartition("\n")
        lines = [checksums.decode_json(line, str(path)) for line in whole.split("\n") if line]
        if not all(is_checked for _, is_checked in lines):
            encoded = "".join(checksums.encode_line(data) for data, _ in lines) + rest
            self.unchecked[path] = lambda: write_atomic(path, encoded.encode())

    def yaml(self, path: Path) -> None:
        """The same for a YAML file."""
        if not checksums.has_yaml_checksum(path):
            self.unchecked[path] = lambda: write_atomic(path, checksums.encode_yaml(read_text(path)))

    def write_checksums(self) -> list[Path]:
        """Give every sound file that has none its checksum; returns them."""
        for write in self.unchecked.values():
            write()
        written, self.unchecked = list(self.unchecked), {}
        return written
