"""List the images of a source: class folders, or the rows of a table."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from fsl_dist.data.catalogue import SPLITS
from fsl_dist.data.images import IMAGE_SUFFIXES
from fsl_dist.data.ingest.source_images import SourceFile
from fsl_dist.data.ingest.split_folders import describe_folders, find_split_folders
from fsl_dist.data.names.keys import make_key
from fsl_dist.data.names.readings import Names, printable, strip_invisible
from fsl_dist.data.names.tables import TableRows, read_table
from fsl_dist.data.write_report import BadSample
from fsl_dist.errors import RequestError

_NO_FILE = "no such file"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image of the source; strings are empty if the source does not contain the value."""

    file: str
    """where to read it"""
    path: str
    """relative to the source, as reports name it"""
    key: str
    label: str
    group: str = ""
    blind_group: str = ""
    unit: str = ""
    """value of the column whose samples are kept together"""
    split: str = ""
    mask: str = ""
    """where to read the mask"""
    mask_path: str = ""
    """the same relative to the source, as reports name it"""
    key_path: str = ""
    """path below the source that `key` was made of"""

    @property
    def source(self) -> SourceFile:
        """The fields that are needed to read the files."""
        return SourceFile(self.file, self.path, self.mask, self.mask_path)


@dataclass(frozen=True, slots=True)
class Listing:
    """The images that were found, sorted by key, each key once."""

    candidates: list[Candidate]
    bad: list[BadSample]
    num_ignored: int = 0
    """files in class folders that are not named like images"""
    notes: Sequence[str] = ()
    """how the source was read, as sentences for the user"""
    warnings: Sequence[str] = ()
    """warnings about how names were read"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """A table and the columns to read from it; an empty name means none."""

    table: str
    """CSV, TSV, Parquet, JSON or JSON lines file"""
    path: str = "file"
    """path of the image, relative to the source"""
    label: str = "class"
    group: str = ""
    blind_group: str = ""
    split: str = ""
    unit: str = ""
    """column: samples with the same value are in the same split"""
    mask: str = ""
    """path of the image's mask, relative to the source; an empty cell means none"""

    def named(self) -> dict[str, str]:
        """Field → column, for the columns that are set."""
        return {name: column for name, column in asdict(self).items() if column and name != "table"}


@dataclass(slots=True)
class _Collector:
    """Turns named files into candidates, or into bad samples with the reason."""

    source: Path
    candidates: list[Candidate] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)
    num_ignored: int = 0
    notes: list[str] = field(default_factory=list)
    real_source: str = ""

    def __post_init__(self) -> None:
        self.real_source = os.path.realpath(self.source)

    def reject(self, path: str, reason: str) -> None:
        self.bad.append(BadSample(printable(path), reason))

    def reject_folder(self, error: OSError) -> None:
        """Name a folder that cannot be listed."""
        path = os.path.relpath(os.fsdecode(error.filename), self.source)
        self.reject(path, f"cannot be listed: {error.strerror}")

    def add(
        self,
        path: str,
        label: str,
        group: str = "",
        blind_group: str = "",
        unit: str = "",
        split: str = "",
        mask: str = "",
    ) -> None:
        """Add the file at `path` below the source, with its `mask` if it has one, or record why it is unusable."""
        if not path.strip():
            return self.reject(path, "no file is named")
        if not label:
            return self.reject(path, "has no label")
        found, reason = self._find(path)
        if reason:
            return self.reject(path, reason)
        found_mask, reason = self._find(mask) if mask.strip() else ("", "")
        if reason:
            return self.reject(path, f"its mask '{printable(mask)}': {reason}")
        file = os.path.join(self.source, found)
        inside = os.path.normpath(found)
        if os.path.isabs(inside) or inside.startswith(".."):
            inside = os.path.relpath(os.path.realpath(file), self.real_source)
        self.candidates.append(
            Candidate(
                file=file,
                path=printable(path),
                key=make_key(inside),
                label=label,
                group=group,
                blind_group=blind_group,
                unit=unit,
                split=split,
                mask=os.path.join(self.source, found_mask) if found_mask else "",
                mask_path=printable(found_mask),
                key_path=inside,
            )
        )

    def _find(self, path: str) -> tuple[str, str]:
        """(the path below the source as spelled on disk, the reason why there is no usable file; empty if there is
        one)."""
        reason = self._find_fault(path)
        if reason == _NO_FILE:
            for spelling in spellings_of(path):
                if not self._find_fault(spelling):
                    return spelling, ""
        return path, reason

    def _find_fault(self, path: str) -> str:
        """Why there is no usable file at `path` below the source; empty if there is one."""
        try:
            if b"\0" in os.fsencode(path):
                return "no file is named"
        except UnicodeEncodeError:  # half of a surrogate pair, which is valid in JSON but not in a file name
            return _NO_FILE
        real = os.path.realpath(os.path.join(self.source, path))
        if not real.startswith(self.real_source + os.sep):
            return "leaves the source folder"
        if not os.path.exists(real):
            return _NO_FILE
        return "" if os.path.isfile(real) else "not a regular file"

    def finish(self, warnings: Sequence[str]) -> Listing:
        """Sort by key; a file that is named twice is taken as it was named first."""
        paths = defaultdict[str, set[str]](set)
        for candidate in self.candidates:
            paths[candidate.key].add(candidate.key_path)
        # Files that differ only in the extension: each gets its hash, so that no key depends on the order of the files.
        unique = [
            replace(candidate, key=make_key(candidate.key_path, with_hash=True))
            if len(paths[candidate.key]) > 1
            else candidate
            for candidate in self.candidates
        ]
        kept: list[Candidate] = []
        for candidate in sorted(unique, key=lambda candidate: candidate.key):
            if kept and kept[-1].key == candidate.key:
                first = kept[-1]
                other = f" as '{first.label}', here '{candidate.label}'" * (first.label != candidate.label)
                self.reject(candidate.path, f"duplicate key '{candidate.key}', taken by {first.path}{other}")
            else:
                kept.append(candidate)
        return Listing(kept, self.bad, self.num_ignored, self.notes, warnings)


def spellings_of(path: str) -> Iterator[str]:
    """Yield other spellings of a table's path, most likely first, for a path that does not exist.

    Variants: without white space at the ends; without invisible characters; with `/` for the backslashes of Windows; in
    Unicode's other form (archives from macOS use form D); with the escapes of a URL decoded.
    """
    stripped, plain = path.strip(), strip_invisible(path).strip()
    slashed = (text.replace("\\", "/") for text in (stripped, plain))
    for spelling in dict.fromkeys((stripped, plain, *slashed)):
        for unescaped in dict.fromkeys((spelling, unquote(spelling, errors="surrogateescape"))):
            for form in ("NFC", "NFD"):
                yield unicodedata.normalize(form, unescaped)


def list_folder(source: Path, split_folders: bool | None = None) -> Listing:
    """Images below the class folders of `source`, or of its split folders (`find_split_folders` decides).

    The first path component is the class; in split folders the second is, and the first is the split.
    `readings.read_text` reads the names of classes.
    Names that start with a dot are ignored. Images that are in no class folder, and files in class folders that
    are not named like images, are counted. Links to folders are not followed. RequestError where nothing is left.
    """
    collected, names = _Collector(source), Names("class folders")
    images = _walk(source, collected)
    # Of each folder: the images in each of its folders, and under "" those directly in it.
    folders = {top: Counter(parts[1] if len(parts) > 1 else "" for parts, _ in images[top]) for top in images}
    num_loose = folders.pop("")[""]
    split_of = find_split_folders(source, folders, split_folders)
    collected.notes += map(printable, describe_folders(source, folders, split_of))
    if num_loose:
        collected.notes.append(f"'{source}': {num_loose} images next to the folders were skipped")
    for top in sorted(folders):
        for parts, path in images[top]:
            if not split_of:
                collected.add(path, label=names.read_folder(top))
            elif len(parts) > 1:
                collected.add(path, label=names.read_folder(parts[1]), split=split_of[top])
        if split_of and folders[top][""]:
            collected.reject(top, f"its {folders[top]['']} images are in no class folder: they have no label")
    listing = collected.finish(names.find_doubts())
    if not listing.candidates:
        shards = "; for .tar shards use `adopt`" if next(source.glob("*.tar"), None) else ""
        raise RequestError(
            f"source '{source}' has no class folders with images (looked for SRC/CLASS/…/IMAGE with "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}); {len(listing.bad)} entries were refused. A table of paths and "
            f"labels is packed with table=…{shards}"
        )
    return listing


def _walk(source: Path, collected: _Collector) -> dict[str, list[tuple[list[str], str]]]:
    """Folder in `source` ("" for `source` itself) → (folders from there to the image,
    path) of each image at or below it."""
    images: dict[str, list[tuple[list[str], str]]] = {"": []}
    for folder, folders, files in os.walk(source, onerror=collected.reject_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.normpath(os.path.relpath(folder, source))
        parts = [] if inside == "." else inside.split(os.sep)
        if not parts:
            images |= {name: [] for name in folders}
        for name in folders:
            path = os.path.join(*parts, name)
            if os.path.islink(os.path.join(source, path)):
                collected.reject(path, "a link to a folder is not followed")
        for name in files:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                images[parts[0] if parts else ""].append((parts, os.path.join(*parts, name)))
            elif parts:
                collected.num_ignored += 1
    return images


def list_table(source: Path, columns: TableColumns) -> Listing:
    """List the images in the rows of a table. Raises RequestError for an unusable table."""
    wanted = columns.named()
    texts = {name: column for name, column in wanted.items() if name in ("path", "mask")}
    names = {name: column for name, column in wanted.items() if name not in texts}
    rows = read_split_table(Path(columns.table), list(texts.values()), list(names.values()), columns.split)
    if not any(rows.names[columns.label]):
        raise RequestError(f"label_column={columns.label} names no class in any of the table's rows")
    collected = _Collector(source)
    cells = [rows.texts[column] for column in texts.values()]
    cells += [rows.names[column] for column in names.values()]
    for values in zip(*cells, strict=True):
        collected.add(**dict(zip([*texts, *names], values, strict=True)))
    listing = collected.finish(rows.warnings)
    if not listing.candidates:
        first = listing.bad[0]
        raise RequestError(
            f"none of the {len(listing.bad)} rows of '{columns.table}' names an image below '{source}': "
            f"'{first.path}': {first.reason}"
        )
    return listing


def read_split_table(
    path: Path, texts: Sequence[str], names: Sequence[str], split_column: str = ""
) -> TableRows:
    """Read the selected columns of a table with `read_table`; it must have rows.

    `split_column` (empty: none, otherwise one of `names`) must contain split names. RequestError for an unusable table.
    """
    rows = read_table(path, texts, names)
    if split_column:
        seen = sorted(set(rows.names[split_column]))
        if not set(seen) <= set(SPLITS):
            raise RequestError(
                f"split_column={split_column} must contain {', '.join(SPLITS)}; it contains "
                f"{', '.join(repr(value) for value in seen[:8])}{' …' if len(seen) > 8 else ''}"
            )
    return rows
