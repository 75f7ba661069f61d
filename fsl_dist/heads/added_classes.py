"""Classes that were added to a run without training: append-only records under RUN/classes.

Each record is one file, `00000001.record` and so on: a line with the CRC-32 of the rest, a line of JSON, and for an
added class its embeddings as little-endian float32. A file is written completely or not at all, and a number is used
by one writer only: of two concurrent writers, the second one uses the next number. A class is removed by another
record.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import DataError, RequestError
from index.base.files import list_folder, write_new
from index.base.object_cache import bring_file

FOLDER = "classes"
"""in a run's folder"""

_ENDING = ".record"


@dataclass(frozen=True, slots=True, eq=False)
class AddedClass:
    """A class known by a few images."""

    name: str
    vectors: NDArray[np.float32]
    """float32 [n, dim], n ≥ 1: embeddings of its images"""
    images: tuple[str, ...]
    """what its images were called: n names"""
    parameters: str
    """the network that embedded them: `TrainedRun.parameters`"""


def read_classes(run: Path) -> list[AddedClass]:
    """The classes that were added to a run and not removed, in the order of their addition.

    Raises DataError for a record that is damaged or missing.
    """
    return list(_read(run)[0].values())


def add_class(run: Path, added: AddedClass) -> None:
    """Append a class to a run.

    Raises RequestError if a class of that name was already added, DataError for a damaged record.
    """
    head = {
        "event": "add",
        "name": added.name,
        "images": list(added.images),
        "parameters": added.parameters,
        "shape": list(added.vectors.shape),
    }
    payload = np.ascontiguousarray(added.vectors, dtype="<f4").tobytes()
    while True:
        known, last = _read(run)
        if added.name in known:
            raise RequestError(
                f"class '{added.name}' was already added to {run} (remove_class('{added.name}') first, or use "
                "another name)"
            )
        if _append(run, last + 1, head, payload):
            return


def remove_class(run: Path, name: str) -> None:
    """Remove an added class; its record is kept, and the class can be added again.

    Raises RequestError if no class of that name was added.
    """
    while True:
        known, last = _read(run)
        if name not in known:
            names = ", ".join(f"'{other}'" for other in known) or "none"
            raise RequestError(f"class '{name}' was not added to {run}; added are: {names}")
        if _append(run, last + 1, {"event": "remove", "name": name}, b""):
            return


def _append(run: Path, number: int, head: Mapping[str, object], payload: bytes) -> bool:
    """Write record `number`; False where another process has written it just now."""
    body = json.dumps(head).encode() + b"\n" + payload
    try:
        write_new(_path(run, number), f"{zlib.crc32(body):08x}\n".encode() + body)
    except FileExistsError:
        return False
    return True


def _path(run: Path, number: int) -> Path:
    return run / FOLDER / f"{number:08d}{_ENDING}"


def _read(run: Path) -> tuple[dict[str, AddedClass], int]:
    """(the added classes by name, number of the last record)."""
    numbers = [
        int(stem)
        for name in list_folder(run / FOLDER)
        if name.endswith(_ENDING) and (stem := name.removesuffix(_ENDING)).isdecimal()
    ]
    known: dict[str, AddedClass] = {}
    for number in range(1, max(numbers, default=0) + 1):
        head, payload = _read_record(_path(run, number))
        if head["event"] == "remove":
            known.pop(head["name"], None)
        else:
            vectors = np.frombuffer(payload, dtype="<f4").reshape(head["shape"]).astype(np.float32)
            known[head["name"]] = AddedClass(head["name"], vectors, tuple(head["images"]), head["parameters"])
    return known, max(numbers, default=0)


def _read_record(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        bring_file(path)
        crc, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path} is missing, but later records of added classes exist ({_WAY_OUT})") from None
    if crc != f"{zlib.crc32(body):08x}".encode():
        raise DataError(f"{path} is damaged: its checksum is another ({_WAY_OUT})")
    head, _, payload = body.partition(b"\n")
    return json.loads(head), payload


_WAY_OUT = "restore it from a copy, or remove the folder and add the classes again"
