"""Dataclasses in JSON files, with a checksum: what a command decided or found, for a later command to read."""

import functools
from collections.abc import Hashable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pydantic

from index.base.checksums import encode_json, read_json
from index.base.errors import VersionError
from index.base.files import write_atomic

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def write_record(path: Path, record: "DataclassInstance") -> None:
    """Write the fields of a dataclass, and of those in it, as JSON in one step.
    The checksum binds them to the file's name."""
    write_atomic(path, encode_json(asdict(record), path.name))


def read_record(cls: type[T], path: Path, root: Path) -> T:
    """Read a dataclass that `write_record` wrote.

    Args:
        cls: the dataclass; its types are checked, lists are converted to tuples where it has tuples.
        path: the file.
        root: the run, data set, index, sweep or fit that the file belongs to.

    Raises:
        VersionError: the file is damaged, its values do not have the types of `cls`, or it has a field that `cls` has
            not.
    """
    data = read_json(path, root=root, name=path.name)
    if unknown := sorted(set(data) - {field.name for field in fields(cast(Any, cls))}):
        raise VersionError(
            f"{path} is damaged, or of a later version: {unknown[0]!r} is not one of its fields"
        )
    try:
        return cast(T, _adapter_of(cast(Hashable, cls)).validate_python(data))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "its content"
        raise VersionError(f"{path} is damaged: {key}: {first['msg']}") from None


@functools.cache
def _adapter_of(cls: Hashable) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cast(type, cls))
