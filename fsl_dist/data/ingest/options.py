"""Options of `pack`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.data.ingest.division import SplitOptions
from fsl_dist.data.ingest.duplicates import Dedupe
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.names.keys import KEY_RULE
from fsl_dist.data.resize import StoredSize
from fsl_dist.errors import RequestError
from index.base.settings import settings


@settings("")
class PackOptions(SplitOptions):
    """How `pack` reads its source, divides it and writes it."""

    columns: TableColumns | None = None
    """table to read instead of class folders"""
    split_folders: bool | None = None
    """whether folders named like splits (train, val, test) contain the class folders of these splits; None: if there is
    train and another of them"""
    order: Literal["mixed", "class"] = "mixed"
    """order of bytes in the shards; mixed: shuffled over the whole source; class: the bytes of each class together"""
    shard_size_mb: Annotated[int, Field(ge=1)] = 256
    """a shard is closed before it grows beyond this many 10⁶ bytes (one sample may be larger)"""
    resize_shorter: Annotated[int, Field(ge=1)] | None = None
    """pixels of the shorter side at which larger images are stored; None: unchanged"""
    resize: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """(height, width) in pixels at which larger images are stored, in place of `resize_shorter`"""
    pixel_range: tuple[float, float] | None = None
    """(low, high): grey pixels of more than 8 bits are stored as PNG of 8, low as black and high as white; None:
    as they are"""
    dedupe: Dedupe | None = None
    """near-duplicates to leave out: `name`: those with one file name; `phash`: all; None: none"""
    num_classes: Annotated[int, Field(ge=1)] | None = None
    """pack only this many classes, those with the most usable images; None: all"""
    processes: Annotated[int, Field(ge=0)] = 0
    """processes that check, resize and write; 0: one per core; 1: this process alone"""

    def __post_init__(self) -> None:
        _ = self.stored_size
        if self.split_folders and self.columns is not None:
            raise RequestError(
                f"split_folders=True reads folders and table={self.columns.table} names the images; leave one out"
            )
        if self.pixel_range is not None and self.pixel_range[0] >= self.pixel_range[1]:
            raise RequestError(
                "pixel_range={:g}:{:g} must be two numbers, the smaller first, such as -1024:3071".format(
                    *self.pixel_range
                )
            )
        SplitOptions.__post_init__(self)

    @property
    def stored_size(self) -> StoredSize:
        """The size at which images are stored; raises RequestError if options contradict each other."""
        return StoredSize(shorter=self.resize_shorter, exact=self.resize)

    @property
    def split_source(self) -> tuple[str, str]:
        return "split_column", self.columns.split if self.columns is not None else ""

    def with_folder_splits(self, source: str | Path) -> "PackOptions":
        """These options for a `source` whose folders give the splits; RequestError if they also set another split."""
        given = {
            "split": self.split if self.split != "folders" else "",
            "num_base": self.num_base,
            "fractions": ",".join(f"{share:g}" for share in self.fractions or ()),
        }
        named = [f"{name}={value}" for name, value in given.items() if value]
        if named:
            raise RequestError(
                f"the folders of source '{source}' give its splits and {' and '.join(named)} divides again; leave "
                "one out (`resplit` divides a packed data set again, split_folders=False reads the folders as classes)"
            )
        return replace(self, split="folders")

    @property
    def record(self) -> dict[str, object]:
        """The options that the catalogue records."""
        return {
            "source": "folder" if self.columns is None else "table",
            "columns": None if self.columns is None else self.columns.named(),
            **self.rule,
            "order": self.order,
            "shard_size_mb": self.shard_size_mb,
            **self.stored_size.record,
            "pixel_range": self.pixel_range,
            "dedupe": self.dedupe,
            "num_classes": self.num_classes,
            "key_rule": KEY_RULE,
        }
