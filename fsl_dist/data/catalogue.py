"""The catalogue: one row per sample, sorted by (split, label, group, key), memory-mapped Arrow IPC.

    DATASET/
      shards/shard-000000.tar …      plain WebDataset
      catalogue/000001.arrow …       the highest number is current

A sample's id is its row number in one catalogue version, so a class inside a split is a contiguous range of ids. The
key identifies a sample across versions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from fsl_dist.data.catalogue_file import SCHEMA, encode_metadata, fingerprint_of, read_table, write_table
from fsl_dist.data.selection import Selection
from fsl_dist.data.write_report import BadSample, Duplicate, WriteReport
from fsl_dist.errors import RequestError, VersionError
from fsl_dist.notebook import html_table
from index.base import files, object_cache

SPLITS = ("train", "val", "test", "novel")
"""Split names in the order of their codes and of the catalogue's rows."""


def is_dataset(folder: Path) -> bool:
    """Whether `folder` is that of a data set."""
    return files.exists(folder / "catalogue")


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One tar file of a data set."""

    name: str
    """relative to the data set's folder, or absolute if `adopt` indexed a shard outside of it"""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class CatalogueMetadata:
    """The information of a catalogue apart from its rows."""

    class_names: Sequence[str]
    """name of each label, label = position"""
    group_names: Sequence[str] = ()
    """name of each group"""
    blind_group_names: Sequence[str] = ()
    """names of the blind groups: second labels that were assigned without using the class"""
    unit_names: Sequence[str] = ()
    """name of each unit that no split divides (a patient, a lesion)"""
    shards: Sequence[ShardFile] = ()
    bad_samples: Sequence[BadSample] = ()
    """samples that were left out, with the reasons"""
    duplicates: Sequence[Duplicate] = ()
    """near-duplicates that were left out"""
    options: dict[str, object]
    """how the data set was made: JSON values, no paths of a machine"""


@dataclass(frozen=True, slots=True)
class Location:
    """Where samples are stored, one entry for each."""

    shard: NDArray[np.int32]
    """int32 [n]: position in `Catalogue.shards`"""
    offset: NDArray[np.int64]
    """int64 [n]: first byte of the sample in its shard"""
    size: NDArray[np.int64]
    """int64 [n]: bytes"""
    crc32: NDArray[np.uint32]
    """uint32 [n]: zlib's CRC-32 of those bytes"""


class Catalogue:
    """One opened version of a data set's catalogue. Read-only; columns are views of the mapped file."""

    def __init__(self, folder: Path, version: int, table: pa.Table) -> None:
        self.folder = folder
        self.version = version
        self._table = table
        self.labels: NDArray[np.int64] = self._column("label")
        self.groups: NDArray[np.int64] = self._column("group")
        self.blind_groups: NDArray[np.int64] = self._column("blind_group")
        self.units: NDArray[np.int64] = self._column("unit")
        self.splits: NDArray[np.int8] = self._column("split")
        self._split_starts = np.searchsorted(self.splits, np.arange(len(SPLITS) + 1))
        self.report: WriteReport | None = None
        """numbers of written and skipped samples, if this process wrote the catalogue"""

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(self.split_ids(name))}" for name in self.split_names)
        return (
            f"Catalogue('{object_cache.with_addresses(str(self.folder))}', version {self.version}, "
            f"{self.num_samples} images of {self.num_classes} classes: {splits})"
        )

    def _repr_html_(self) -> str:
        rows = [
            [name, len(ids), len(np.unique(self.labels[ids.start : ids.stop]))]
            for name in self.split_names
            for ids in [self.split_ids(name)]
        ]
        return html_table(["split", "images", "classes"], rows, caption=repr(self))

    @classmethod
    def open(cls, folder: str | Path, version: int | None = None) -> "Catalogue":
        """Open a data set's catalogue, by default the current version. Its checksum is verified first.

        Raises RequestError if the folder is not a data set or has no such version, VersionError if the file is damaged.
        """
        folder = object_cache.working_folder(folder)
        rows = folder / "catalogue"
        there = files.list_folder(rows)
        if not there and not folder.is_dir():
            raise RequestError(f"data set '{folder}': no such folder; `pack` creates one")
        paths = [rows / name for name in there if name.endswith(".arrow")]
        found = {int(path.stem): path for path in paths if path.stem.isdigit()}
        if not found:
            raise RequestError(
                f"'{folder}' is not a data set: it has no catalogue/*.arrow; `pack` creates one"
            )
        version = max(found) if version is None else version
        if version not in found:
            raise RequestError(
                f"data set '{folder}' has no catalogue version {version}; it has {sorted(found)}"
            )
        object_cache.bring(rows, wanted=lambda name: name == found[version].name)
        return cls(folder, version, read_table(found[version], version, folder))

    def _column(self, name: str) -> NDArray[Any]:
        dtype = SCHEMA.field(name).type.to_pandas_dtype()
        chunks = self._table.column(name).chunks
        if not chunks:
            return np.zeros(0, dtype=dtype)
        # Not to_numpy: it imports pandas, 0.3 s and 40 MB a process.
        return np.frombuffer(chunks[0].buffers()[1], dtype, len(chunks[0]))

    def _metadata(self, name: str) -> Any:
        return json.loads(self._table.schema.metadata[name.encode()])

    @property
    def num_samples(self) -> int:
        return self._table.num_rows

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def class_names(self) -> list[str]:
        """Name of each label."""
        return self._metadata("class_names")

    @cached_property
    def group_names(self) -> list[str]:
        """Name of each group; empty where the data set has none."""
        return self._metadata("group_names")

    @cached_property
    def blind_group_names(self) -> list[str]:
        """Name of each blind group; empty where the data set has none."""
        return self._metadata("blind_group_names")

    @cached_property
    def unit_names(self) -> list[str]:
        """Name of each unit that no split divides; empty where the data set has none."""
        return self._metadata("unit_names")

    @cached_property
    def shards(self) -> list[ShardFile]:
        """The tar files, in the order that the rows' shard numbers mean."""
        return [ShardFile(**shard) for shard in self._metadata("shards")]

    @cached_property
    def bad_samples(self) -> list[BadSample]:
        """Samples that were left out when the data set was made."""
        return [BadSample(**bad) for bad in self._metadata("bad_samples")]

    @cached_property
    def duplicates(self) -> list[Duplicate]:
        """Near-duplicates that were left out when the data set was made."""
        stored = (self._table.schema.metadata or {}).get(b"duplicates", b"[]")
        return [Duplicate(**duplicate) for duplicate in json.loads(stored)]

    @cached_property
    def options(self) -> dict[str, object]:
        """How the data set was made."""
        return self._metadata("options")

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of rows and metadata, as stored: free to read."""
        return self._table.schema.metadata[b"fingerprint"].decode()

    def check_fingerprint(self) -> None:
        """Recompute the fingerprint; raises VersionError if it differs. One pass over the file."""
        if fingerprint_of(self._table) != self.fingerprint:
            raise VersionError(
                f"catalogue {self.version} of '{self.folder}' is damaged: its content does not match its "
                "fingerprint; restore it from a copy or pack again"
            )

    def columns(self) -> dict[str, NDArray[Any] | list[str]]:
        """Every column of `SCHEMA`, row = sample id; for writing another version."""
        return {
            name: self.keys(np.arange(self.num_samples)) if name == "key" else self._column(name)
            for name in SCHEMA.names
        }

    def label_name(self, label: int) -> str:
        return self.class_names[label]

    def keys(self, ids: ArrayLike) -> list[str]:
        """Key of each of `ids` (int64 [n])."""
        return self._table.column("key").take(pa.array(self._check_ids(ids))).to_pylist()

    def describe_sample(self, sample_id: int) -> str:
        """A sample as errors name it: by its key, its id and the shard it is stored in."""
        shard = self.shards[int(self.locate([sample_id]).shard[0])]
        return f"sample '{self.keys([sample_id])[0]}' (id {sample_id} in '{self.folder / shard.name}')"

    def image_sizes(self, ids: ArrayLike) -> NDArray[np.int64]:
        """int64 [n, 2]: (height, width) of each of `ids` in pixels, upright as decoded."""
        chosen = self._check_ids(ids)
        return np.stack([self._column("height")[chosen], self._column("width")[chosen]], axis=1).astype(
            np.int64
        )

    def locate(self, ids: ArrayLike) -> Location:
        """Where the bytes of `ids` (int64 [n], any order, repeats allowed) are."""
        chosen = self._check_ids(ids)
        return Location(*(self._column(name)[chosen] for name in ("shard", "offset", "size", "crc32")))

    def locate_masks(self, ids: ArrayLike) -> Location:
        """Where the masks of `ids` (int64 [n], any order, repeats allowed) are; size 0 for a sample without one."""
        chosen = self._check_ids(ids)
        names = ("shard", "mask_offset", "mask_size", "mask_crc32")
        return Location(*(self._column(name)[chosen] for name in names))

    def ids_of_shard(self, shard: int) -> NDArray[np.int64]:
        """Sample ids in the shard, ascending. One pass over a column."""
        return np.flatnonzero(self._column("shard") == shard)

    def class_range(self, sample_id: int) -> range:
        """Sample ids of the class and split that a sample belongs to, itself among them."""
        split = self.split_ids(SPLITS[int(self.splits[sample_id])])
        of_split = self.labels[split.start : split.stop]
        label = self.labels[sample_id]
        first, last = (int(np.searchsorted(of_split, label, side)) for side in ("left", "right"))
        return range(split.start + first, split.start + last)

    def _check_ids(self, ids: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(ids, dtype=np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.num_samples):
            wrong = chosen.min() if chosen.min() < 0 else chosen.max()
            raise RequestError(
                f"sample id {wrong} is outside 0 … {self.num_samples - 1} of '{self.folder}' "
                f"(catalogue version {self.version}); ids belong to one catalogue version"
            )
        return chosen

    @property
    def split_names(self) -> list[str]:
        """The splits that have samples, in the order train, val, test, novel."""
        return [name for name in SPLITS if len(self.split_ids(name))]

    def split_ids(self, split: str) -> range:
        """Sample ids of a split; empty if it has no samples. Raises RequestError for an unknown name."""
        if split not in SPLITS:
            raise RequestError(f"split '{split}' is unknown; the splits are {', '.join(SPLITS)}")
        code = SPLITS.index(split)
        return range(int(self._split_starts[code]), int(self._split_starts[code + 1]))

    def select(self, split: str) -> Selection:
        """The samples of a split, class by class. RequestError where the split has none."""
        ids = self.split_ids(split)
        if not ids:
            raise RequestError(
                f"data set '{self.folder}' has no split '{split}'; it has {', '.join(self.split_names)} "
                "(`resplit` creates others)"
            )
        return Selection.from_sorted(np.arange(ids.start, ids.stop), self.labels[ids.start : ids.stop])


def write_catalogue(
    path: Path,
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    metadata: CatalogueMetadata,
    *,
    version: int = 1,
) -> str:
    """Sort rows by (split, label, group, key), write them to `path` as catalogue `version`, and return the fingerprint.

    `columns` has one sequence per field of `SCHEMA`, all of the same length, in any row order (`unit` and the mask's
    fields may be missing). The file's bytes depend only on the arguments; the fingerprint only on rows and metadata.
    """
    num_samples = len(columns["key"])
    no_masks = {name: np.zeros(num_samples) for name in SCHEMA.names if name.startswith("mask_")}
    given = {"unit": np.full(num_samples, -1), **no_masks, **columns}
    table = pa.table({field.name: pa.array(given[field.name], field.type) for field in SCHEMA}, schema=SCHEMA)
    table = table.sort_by(
        [(name, "ascending") for name in ("split", "label", "group", "key")]
    ).combine_chunks()
    return write_table(path, table, encode_metadata(asdict(metadata)), version)
