"""The file of a catalogue: Arrow IPC with a checksum over all of its bytes, which is verified before Arrow reads them.

The checksum is a text in the schema's metadata, "\\x01crc32=" and eight hexadecimal digits. Arrow writes the schema
twice, at the beginning and at the end, so the text occurs twice. It is the CRC-32 of the file with zeros for its
digits. Other programs read the file like any Arrow file. A JSON text contains no raw \\x01, and the keys of samples
are between the two schemas, so the first and the last such text are always the checksums.
"""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fsl_dist.errors import VersionError
from index.base import checksums

FORMAT = "fsl-dist catalogue 3"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.int64()),
        ("group", pa.int64()),
        ("blind_group", pa.int64()),
        ("unit", pa.int64()),
        ("split", pa.int8()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("crc32", pa.uint32()),
        ("mask_offset", pa.int64()),
        ("mask_size", pa.int64()),
        ("mask_crc32", pa.uint32()),
    ]
)

_MARK = b"\x01crc32="
_DIGITS = b"00000000"
_BLOCK_BYTES = 1 << 22
_UNHASHED = (b"fingerprint", b"checksum", b"version")
"""metadata that the fingerprint does not cover: two data sets of the same content have the same fingerprint"""


def read_table(path: Path, version: int, root: Path) -> pa.Table:
    """Read catalogue `version` of the data set `root` after comparing its checksum.
    The table's buffers are the mapped file.

    Raises VersionError, one line, where the file is damaged, of another format, or that of another version. One pass
    over the file's bytes (benchmarks/bench_catalogue_open.py).
    """
    way_out = "pack again, or restore the file from a copy"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            is_checked = _compare_checksum(content)
            if not is_checked and content.find(FORMAT.encode()) < 0:
                raise ValueError(f"'{FORMAT}', the format that this version reads, is not in it")
        table = pa.ipc.open_file(pa.memory_map(os.fsencode(path))).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VersionError(f"catalogue '{path}' is damaged or unfinished ({reason}); {way_out}") from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"format") != FORMAT.encode() or not table.schema.equals(SCHEMA):
        written = metadata.get(b"format", b"unknown").decode(errors="replace")
        raise VersionError(
            f"catalogue '{path}' has format '{written}'; this version reads '{FORMAT}'; pack again"
        )
    if any(table.column(name).null_count or table.column(name).num_chunks > 1 for name in SCHEMA.names):
        raise VersionError(f"catalogue '{path}' is damaged (a column has gaps); {way_out}")
    if is_checked:
        written = metadata.get(b"version", b"").decode(errors="replace")
        if written != str(version):
            raise VersionError(f"catalogue '{path}' is that of version {written}: it was swapped; {way_out}")
        return table
    if fingerprint_of(table) != metadata.get(b"fingerprint", b"").decode(errors="replace"):
        raise VersionError(
            f"catalogue '{path}' is damaged: its content does not match its fingerprint; {way_out}"
        )
    checksums.warn_unchecked(path, root)
    return table


def write_table(path: Path, table: pa.Table, metadata: Mapping[bytes, bytes], version: int) -> str:
    """Write rows of `SCHEMA` and metadata (values: JSON texts) with fingerprint and checksum; returns the fingerprint.

    The file's bytes depend on the arguments alone.
    """
    bare = {name: value for name, value in metadata.items() if name not in _UNHASHED}
    fingerprint = fingerprint_of(table.replace_schema_metadata(bare))
    table = table.replace_schema_metadata(
        {
            **bare,
            b"fingerprint": fingerprint.encode(),
            b"version": str(version).encode(),
            b"checksum": _MARK + _DIGITS,
        }
    )
    # One record batch: every column is one buffer of the mapped file, so views of it are free.
    with pa.OSFile(os.fsencode(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)
    _write_checksum(path)
    return fingerprint


def has_checksum(path: Path) -> bool:
    """Whether a catalogue has a checksum; it is not compared."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return bool(_find_marks(content))


def fingerprint_of(table: pa.Table) -> str:
    """SHA-256 (hex) of rows and metadata: what two catalogues of the same content have in common."""
    digest = hashlib.sha256()
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k not in _UNHASHED}
    for name in sorted(metadata):
        digest.update(name + b"\0" + metadata[name] + b"\0")
    for name in table.column_names:
        digest.update(name.encode() + b"\0")
        if name == "key":
            digest.update("\0".join(table.column(name).to_pylist()).encode())
        else:
            digest.update(np.ascontiguousarray(table.column(name).to_numpy()).tobytes())
    return digest.hexdigest()


def encode_metadata(values: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Encode values as the JSON texts that `write_table` expects, with the name of the format."""
    encoded = {b"format": FORMAT.encode()}
    for name, value in values.items():
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        # A shard's path may contain bytes that are not UTF-8; Python's representation of them is a JSON escape.
        encoded[name.encode()] = text.encode(errors="backslashreplace")
    return encoded


def _compare_checksum(content: mmap.mmap) -> bool:
    """Whether there is a correct checksum; raises ValueError if it is wrong."""
    places = _find_marks(content)
    written = {content[place : place + len(_DIGITS)] for place in places}
    if places and (len(places) < 2 or written != {_checksum(content, places)}):
        raise ValueError("its bytes do not match its checksum")
    return bool(places)


def _write_checksum(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        places = _find_marks(content)
        digits = _checksum(content, places)
        for place in places:
            content[place : place + len(digits)] = digits
        content.flush()
        os.fsync(file.fileno())


def _find_marks(content: mmap.mmap) -> list[int]:
    """Positions of the digits of the first and the last checksum."""
    found = []
    for start, stop in _blocks(content):
        place = content.find(_MARK, start, stop + len(_MARK) - 1)
        while place >= 0:
            found.append(place + len(_MARK))
            place = content.find(_MARK, place + 1, stop + len(_MARK) - 1)
    return found if len(found) < 2 else [found[0], found[-1]]


def _checksum(content: mmap.mmap, places: list[int]) -> bytes:
    """CRC-32 of the content with zeros for the digits at `places`."""
    crc32 = 0
    for start, stop in _blocks(content):
        block = bytearray(content[start:stop])
        for place in places:
            first, last = max(place, start), min(place + len(_DIGITS), stop)
            if first < last:
                block[first - start : last - start] = _DIGITS[: last - first]
        crc32 = zlib.crc32(block, crc32)
    return f"{crc32:08x}".encode()


def _blocks(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Ranges of 4 MiB, released to the system after use: reading all bytes keeps none of them in memory."""
    for start in range(0, len(content), _BLOCK_BYTES):
        stop = min(start + _BLOCK_BYTES, len(content))
        yield start, stop
        content.madvise(mmap.MADV_DONTNEED, start, stop - start)
