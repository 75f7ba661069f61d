"""Another split, label or group over the same shards: the next catalogue version of a data set."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue, CatalogueMetadata
from fsl_dist.data.ingest.division import SplitOptions, divide, number_names
from fsl_dist.data.ingest.listing import read_split_table, spellings_of
from fsl_dist.data.ingest.next_version import add_version, hold_dataset
from fsl_dist.data.ingest.rows import log_bad, make_report, warn
from fsl_dist.data.names.keys import KEY_RULE, make_earlier_key, make_key
from fsl_dist.data.names.readings import printable
from fsl_dist.data.write_report import BadSample, WriteReport
from fsl_dist.errors import RequestError
from index.base import object_cache


@dataclass(frozen=True, kw_only=True, slots=True)
class ResplitOptions(SplitOptions):
    """The changes of the next version; an empty name means no change."""

    table: str = ""
    """table, one row per sample; samples that it does not name are left out"""
    keep_others: bool = False
    """keep samples that the table does not name as they are; of several rows of a sample, the last one counts"""
    key_column: str = ""
    """column with the samples' keys"""
    path_column: str = ""
    """column with paths as they were passed to `pack`, instead of keys"""
    label_column: str = ""
    group_column: str = ""
    blind_group_column: str = ""
    split_column: str = ""
    keep_together: str = ""
    """column of the units that no split divides; empty: those that the data set knows"""

    def __post_init__(self) -> None:
        if self.table and bool(self.key_column) == bool(self.path_column):
            raise RequestError(
                f"table={self.table} needs either key_column=… or path_column=… to find the samples"
            )
        if not self.table and any((self.key_column, self.path_column, *self.value_columns.values())):
            raise RequestError("columns are read from a table; set it with table=…")
        if self.keep_others and (not self.table or self.is_divided_anew):
            raise RequestError(
                "keep_others=True changes only the samples that a table names; it needs table=…, and no option that "
                "divides the data set"
            )
        if not self.table and not self.is_divided_anew:
            raise RequestError("nothing to change; give split=…, or table=… with the new columns")
        SplitOptions.__post_init__(self)

    @property
    def split_source(self) -> tuple[str, str]:
        return "split_column", self.split_column

    @property
    def is_divided_anew(self) -> bool:
        """Whether any option changes the split; if not, samples keep their splits."""
        asked = self.split or self.split_column or self.keep_together or self.seed
        return bool(asked) or self.fractions is not None or self.num_base is not None

    @property
    def value_columns(self) -> dict[str, str]:
        """Catalogue column → table column, for those that are set."""
        columns = {
            "label": self.label_column,
            "group": self.group_column,
            "blind_group": self.blind_group_column,
            "unit": self.keep_together,
            "split": self.split_column,
        }
        return {name: column for name, column in columns.items() if column}


def resplit(dataset: str | Path, options: ResplitOptions) -> WriteReport:
    """Write the next catalogue version of `dataset` over the same shards; earlier versions do not change.

    Labels, groups and units of the table replace the old ones, with new numbers. Samples that are missing in the
    table, or have no label in it, are left out and listed like bad samples, and so are rows without a sample. With
    the options of a pack, samples are divided as that pack would have divided them. Reads no image. Raises
    RequestError, with nothing written, for an invalid request.
    """
    dataset = object_cache.working_folder(dataset)
    with hold_dataset(dataset) as old:
        keys = old.keys(np.arange(old.num_samples))
        if options.table:
            ids, values, bad = _match(old, keys, options)
        else:
            ids, values, bad = sorted(range(len(keys)), key=keys.__getitem__), {}, []
        log_bad(bad)
        if not ids:
            raise RequestError(
                f"no row of table={options.table} names a sample of '{dataset}' (the first: '{bad[0].path}', "
                f"{bad[0].reason}); its keys are such as '{keys[0]}'"
            )
        # In the order of keys, as pack divides.
        chosen = np.array(ids, dtype=np.int64)
        columns: dict[str, Any] = {
            name: [column[i] for i in ids] if isinstance(column, list) else column[chosen]
            for name, column in old.columns().items()
        }
        names = _renumber(old, columns, values)
        warnings: list[str] = []
        if options.is_divided_anew:
            columns["split"], warnings = divide(
                columns["label"],
                columns["unit"],
                values.get("split", []),
                (names["label"], names["unit"]),
                options,
            )
            warn(warnings)
        metadata = CatalogueMetadata(
            class_names=names["label"],
            group_names=names["group"],
            blind_group_names=names["blind_group"],
            unit_names=names["unit"],
            shards=old.shards,
            bad_samples=[*old.bad_samples, *bad],
            duplicates=old.duplicates,
            options={
                **old.options,
                **(options.rule if options.is_divided_anew else {}),
                "resplit_columns": options.value_columns,
            },
        )
        fingerprint = add_version(dataset, old.version + 1, columns, metadata)
    return make_report(
        dataset,
        old.version + 1,
        replace(metadata, bad_samples=bad, duplicates=[]),
        columns["split"],
        fingerprint,
        warnings,
    )


def _match(
    old: Catalogue, keys: list[str], options: ResplitOptions
) -> tuple[list[int], dict[str, list[str]], list[BadSample]]:
    """(ids in the order of their keys, catalogue column → their values, samples and rows that are left out)."""
    id_of = {key: sample_id for sample_id, key in enumerate(keys)}
    has_earlier_keys = old.options.get("key_rule") != KEY_RULE
    wanted = options.value_columns
    name_column = options.key_column or options.path_column
    rows = read_split_table(Path(options.table), [name_column], list(wanted.values()), options.split_column)
    warn(rows.warnings)
    row_of: dict[str, int] = {}
    bad: list[BadSample] = []
    for row, name in enumerate(rows.texts[name_column]):
        key = name.strip() if options.key_column else _key_of_path(name, id_of, has_earlier_keys)
        if not key:
            bad.append(BadSample(printable(name), "no file is named"))
        elif key not in id_of:
            bad.append(BadSample(printable(name), "no such sample in the data set"))
        elif key in row_of and not options.keep_others:
            bad.append(BadSample(printable(name), f"duplicate key '{key}', named by an earlier row"))
        else:
            row_of[key] = row
    kept = []
    for key in sorted(keys):
        if key not in row_of and not options.keep_others:
            bad.append(BadSample(key, "is not in the table"))
        elif key in row_of and options.label_column and not rows.names[options.label_column][row_of[key]]:
            bad.append(BadSample(key, "has no label"))
        else:
            kept.append(key)
    values = {}
    for name, column in wanted.items():
        before = _names_of(old, name) if options.keep_others else []
        values[name] = [
            rows.names[column][row_of[key]] if key in row_of else before[id_of[key]] for key in kept
        ]
    return [id_of[key] for key in kept], values, bad


def _names_of(old: Catalogue, column: str) -> list[str]:
    """The names in a column of a catalogue, row = sample id; empty where a sample has none."""
    numbers, names = {
        "label": (old.labels, old.class_names),
        "group": (old.groups, old.group_names),
        "blind_group": (old.blind_groups, old.blind_group_names),
        "unit": (old.units, old.unit_names),
    }[column]
    return [names[number] if number >= 0 else "" for number in numbers.tolist()]


def _key_of_path(path: str, id_of: dict[str, int], has_earlier_keys: bool) -> str:
    """The key that `pack` made of a path, or that adopted shards have for it;
    for an unknown path, the key it would get now.

    Empty if the path names no file: an empty cell, the source itself.
    """
    for spelling in (path, *spellings_of(path)):
        inside = os.path.normpath(spelling)
        folder, slash, name = inside.rpartition("/")
        if name in ("", ".", ".."):
            return ""
        keys = [make_key(inside, with_hash=True), make_key(inside), folder + slash + name.split(".")[0]]
        if has_earlier_keys:
            keys.append(make_earlier_key(inside))
        for key in keys:
            if key in id_of:
                return key
    return make_key(os.path.normpath(path))


def _renumber(
    old: Catalogue, columns: dict[str, NDArray[Any]], values: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Write the table's values into `columns`; return catalogue column → its names."""
    names = {
        "label": old.class_names,
        "group": old.group_names,
        "blind_group": old.blind_group_names,
        "unit": old.unit_names,
    }
    for name in names:
        if name in values:
            names[name], columns[name] = number_names(values[name])
    return names
