"""What a source offers to pack: class folders, or the rows of a CSV or Parquet table."""

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from fsl_dist.data.catalogue import SPLITS
from fsl_dist.data.images import IMAGE_SUFFIXES
from fsl_dist.data.ingest.source_images import SourceFile
from fsl_dist.data.ingest.split_folders import describe_folders, find_split_folders
from fsl_dist.data.write_report import BadSample
from fsl_dist.errors import RequestError

# A tar header holds 100 bytes of name; the longest extension, ".mask.png", takes 9 of them.
_MAX_KEY_BYTES = 91


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image that the source names; empty strings where the source says nothing."""

    file: str
    """where to read it"""
    path: str
    """relative to the source, as reports name it"""
    key: str
    label: str
    group: str = ""
    blind_group: str = ""
    unit: str = ""
    """value of the column to keep together"""
    split: str = ""
    mask: str = ""
    """where to read the mask"""
    mask_path: str = ""
    """the same relative to the source, as reports name it"""

    @property
    def source(self) -> SourceFile:
        """What is needed to read it."""
        return SourceFile(self.file, self.path, self.mask, self.mask_path)


@dataclass(frozen=True, slots=True)
class Listing:
    """What was found, sorted by key, each key once."""

    candidates: list[Candidate]
    bad: list[BadSample]
    num_ignored: int = 0
    """files in class folders that are not named like images"""
    notes: Sequence[str] = ()
    """how the source was read, as sentences for the user"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """A table and the columns to read from it (as text); an empty name means none."""

    table: str
    """CSV or Parquet file"""
    path: str = "file"
    """path of the image, relative to the source"""
    label: str = "class"
    group: str = ""
    blind_group: str = ""
    split: str = ""
    unit: str = ""
    """samples with one value stay on one side of any split"""
    mask: str = ""
    """path of the image's mask, relative to the source; an empty cell means none"""

    def named(self) -> dict[str, str]:
        """Field → column, for the columns that are asked for."""
        return {name: column for name, column in asdict(self).items() if column and name != "table"}


def make_key(path: str) -> str:
    """Key of the image at `path` (relative to the source): its path without extension, made safe.

    WebDataset cuts a name at the first dot, so dots go, and so does everything but letters (of any
    script), digits, "_", "-" and "/". A key too long for a tar header keeps its end, where file names differ.
    """
    stem = str(PurePosixPath(path).with_suffix(""))
    key = re.sub(r"[^\w/\-]", "_", unicodedata.normalize("NFC", stem))
    encoded = key.encode()
    if len(encoded) > _MAX_KEY_BYTES:
        key = encoded[-_MAX_KEY_BYTES:].decode(errors="ignore").lstrip("/")
    return key


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
        self.bad.append(BadSample(path, reason))

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
        """Take the file at `path` below the source, with its `mask` if one is named, or say why not."""
        if not path:
            return self.reject(path, "no file is named")
        if not label:
            return self.reject(path, "has no label")
        if reason := self._find_fault(path):
            return self.reject(path, reason)
        if mask and (reason := self._find_fault(mask)):
            return self.reject(path, f"its mask '{mask}': {reason}")
        file = os.path.join(self.source, path)
        inside = os.path.normpath(path)
        if os.path.isabs(inside) or inside.startswith(".."):
            inside = os.path.relpath(os.path.realpath(file), self.real_source)
        self.candidates.append(
            Candidate(
                file=file,
                path=path,
                key=make_key(inside),
                label=label,
                group=group,
                blind_group=blind_group,
                unit=unit,
                split=split,
                mask=os.path.join(self.source, mask) if mask else "",
                mask_path=mask,
            )
        )

    def _find_fault(self, path: str) -> str:
        """Why there is no usable file at `path` below the source; empty where there is."""
        if "\0" in path:
            return "no file is named"
        real = os.path.realpath(os.path.join(self.source, path))
        if not real.startswith(self.real_source + os.sep):
            return "leaves the source folder"
        if not os.path.exists(real):
            return "no such file"
        return "" if os.path.isfile(real) else "not a regular file"

    def finish(self) -> Listing:
        """Sort by key and keep the first of every key."""
        self.candidates.sort(key=lambda candidate: (candidate.key, candidate.path))
        kept: list[Candidate] = []
        for candidate in self.candidates:
            if kept and kept[-1].key == candidate.key:
                self.reject(candidate.path, f"duplicate key '{candidate.key}', taken by {kept[-1].path}")
            else:
                kept.append(candidate)
        return Listing(kept, self.bad, self.num_ignored, notes=self.notes)


def list_folder(source: Path, split_folders: bool | None = None) -> Listing:
    """Images below the class folders of `source`, or of its split folders (`find_split_folders` decides).

    The first path component is the class; in split folders the second is, and the first is the split.
    Names that start with a dot are ignored. Images that are in no class folder, and files in class folders that
    are not named like images, are counted. Links to folders are not followed. RequestError where nothing is left.
    """
    collected = _Collector(source)
    images = _walk(source, collected)
    # Of each folder: the images in each of its folders, and under "" those directly in it.
    folders = {top: Counter(parts[1] if len(parts) > 1 else "" for parts, _ in images[top]) for top in images}
    num_loose = folders.pop("")[""]
    split_of = find_split_folders(source, folders, split_folders)
    # A folder's name need not be UTF-8.
    collected.notes += [
        note.encode("utf-8", "replace").decode() for note in describe_folders(source, folders, split_of)
    ]
    if num_loose:
        collected.notes.append(f"'{source}': {num_loose} images next to the folders were passed over")
    for top in sorted(folders):
        for parts, path in images[top]:
            if not split_of:
                collected.add(path, label=top)
            elif len(parts) > 1:
                collected.add(path, label=parts[1], split=split_of[top])
        if split_of and folders[top][""]:
            collected.reject(top, f"its {folders[top]['']} images are in no class folder: they have no label")
    listing = collected.finish()
    if not listing.candidates:
        shards = "; `adopt` takes .tar shards" if next(source.glob("*.tar"), None) else ""
        raise RequestError(
            f"source '{source}' has no class folders with images (looked for SRC/CLASS/…/IMAGE with "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}); {len(listing.bad)} entries were refused. A table of paths and "
            f"labels is packed with table=…{shards}"
        )
    return listing


def _walk(source: Path, collected: _Collector) -> dict[str, list[tuple[list[str], str]]]:
    """Folder in `source` ("" for `source` itself) → (folders from there to the image, path) of each image at or below it."""
    images: dict[str, list[tuple[list[str], str]]] = {"": []}
    for folder, folders, files in os.walk(source):
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
    """Images that the rows of a table name. RequestError for a table that cannot serve."""
    wanted = columns.named()
    rows = read_split_table(Path(columns.table), list(wanted.values()), columns.split)
    if not any(rows[columns.label]):
        raise RequestError(f"label_column={columns.label} names no class in any of the table's rows")
    collected = _Collector(source)
    names = list(wanted)
    for values in zip(*(rows[wanted[name]] for name in names), strict=True):
        collected.add(**dict(zip(names, values, strict=True)))
    listing = collected.finish()
    if not listing.candidates:
        first = listing.bad[0]
        raise RequestError(
            f"none of the {len(listing.bad)} rows of '{columns.table}' names an image below '{source}': "
            f"'{first.path}': {first.reason}"
        )
    return listing


def read_split_table(path: Path, columns: list[str], split_column: str) -> dict[str, list[str]]:
    """The named columns of a CSV or Parquet table as text, empty text where a cell is empty; the first must have rows.

    `split_column` (empty: none) must hold split names. RequestError for a table that cannot serve.
    """
    rows = _read_table(path, list(dict.fromkeys(columns)))
    if split_column:
        seen = sorted(set(rows[split_column]))
        if not set(seen) <= set(SPLITS):
            raise RequestError(
                f"split_column={split_column} must hold {', '.join(SPLITS)}; it holds "
                f"{', '.join(repr(value) for value in seen[:8])}{' …' if len(seen) > 8 else ''}"
            )
    return rows


def _read_table(path: Path, columns: list[str]) -> dict[str, list[str]]:
    """The named columns as text; empty text where a cell is empty."""
    if not path.is_file():
        raise RequestError(f"table={path}: no such file")
    if path.suffix.lower() == ".parquet":
        rows = _read_parquet(path, columns)
    elif path.suffix.lower() == ".csv":
        rows = _read_csv(path, columns)
    else:
        raise RequestError(f"table={path} must end in .csv or .parquet")
    if not rows[columns[0]]:
        raise RequestError(f"table={path} has no rows")
    return rows


def _check_columns(path: Path, columns: list[str], found: list[str]) -> None:
    for column in columns:
        if column not in found:
            raise RequestError(
                f"table '{path}' has no column '{column}'; it has {', '.join(found) or 'none'}"
            )


def _read_csv(path: Path, columns: list[str]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {column: [] for column in columns}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            head = next(reader, [])
            _check_columns(path, columns, head)
            places = [(rows[column], head.index(column)) for column in columns]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(head):
                    raise RequestError(
                        f"table '{path}', line {reader.line_num}: {len(row)} cells, the head has {len(head)}"
                    )
                for values, place in places:
                    values.append(row[place].strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"table '{path}' is not a CSV file in UTF-8: {error}") from error
    return rows


def _read_parquet(path: Path, columns: list[str]) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _check_columns(path, columns, pq.read_schema(path).names)
        table = pq.read_table(path, columns=columns)
        return {
            column: table.column(column).cast(pa.string()).fill_null("").to_pylist() for column in columns
        }
    except (pa.ArrowException, OSError) as error:
        raise RequestError(
            f"table '{path}' cannot be read as Parquet: {str(error).splitlines()[0]}"
        ) from error
