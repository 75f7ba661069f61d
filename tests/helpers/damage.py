"""Ways to damage a file, drawn from a seed: flipped bits, cuts, zeroed ranges, swapped files, repeated keys, other types and numbers."""

import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TEXTS = (".json", ".jsonl", ".yaml", "current")


@dataclass(frozen=True)
class Damage:
    """What was done to a file."""

    kind: str
    path: str
    """relative to the folder"""
    detail: str
    is_certain: bool = True
    """whether a checksum covers it: then another answer than the undamaged one is a failure"""
    reaches_end: bool = False
    """whether it reaches into the last line: of a log that line may have been cut by a kill, and does not count"""


def damage(folder: Path, path: Path, draw: random.Random) -> Damage:
    """Damage the file `path` of `folder` in one of the ways that suit it."""
    ways: list[Callable[[Path, Path, random.Random], Damage | None]] = [_flip, _flip, _cut, _zero, _swap]
    if path.name.endswith(TEXTS):
        ways += [_renumber, _renumber, _repeat_key, _drop_line, _retype]
    if path.suffix in (".json", ".yaml"):
        ways += [_uncheck_and_retype]
    if path.suffix == ".faiss":
        ways += [_flip_under_a_right_checksum] * 3
    if path.suffix == ".arrow":
        ways += [_damage_earlier_catalogue] * 3
    while True:
        done = draw.choice(ways)(folder, path, draw)
        if done is not None:
            return done


def _record(folder: Path, path: Path, kind: str, detail: str, start: int, **more: bool) -> Damage:
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    return Damage(kind, str(path.relative_to(folder)), detail, reaches_end=start >= last, **more)


def _write(path: Path, data: bytes) -> bool:
    """Whether the file is another one now."""
    before = path.read_bytes()
    path.write_bytes(data)
    return data != before


def _flip(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    data = bytearray(path.read_bytes())
    if not data:
        return None
    # A header and a footer are small, and most of what a file says of itself is there.
    near = draw.choice([len(data), min(512, len(data)), -min(2048, len(data))])
    places = [
        draw.randrange(near) if near > 0 else len(data) + draw.randrange(near, 0)
        for _ in range(draw.choice([1, 1, 3]))
    ]
    for place in places:
        data[place] ^= 1 << draw.randrange(8)
    record = _record(folder, path, "flip", f"bits at {places}", max(places))
    return record if _write(path, bytes(data)) else None


def _cut(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    data = path.read_bytes()
    if not data:
        return None
    length = draw.choice([0, draw.randrange(len(data)), draw.randrange(len(data)), len(data) - 1])
    path.write_bytes(data[:length])
    return Damage("cut", str(path.relative_to(folder)), f"to {length} bytes", reaches_end=True)


def _zero(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    data = path.read_bytes()
    if not data:
        return None
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.choice([1, 16, 512, 4096, len(data)]))
    record = _record(folder, path, "zero", f"bytes {start} to {stop}", stop)
    return record if _write(path, data[:start] + bytes(stop - start) + data[stop:]) else None


def _swap(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    """Exchange it with another file of its kind."""
    kind = re.sub(r"\d+", "#", path.name)
    others = [
        p
        for p in sorted(folder.rglob("*"))
        if p != path and p.is_file() and re.sub(r"\d+", "#", p.name) == kind
    ]
    if kind == "config.yaml" or not others:  # that of another run is a sound configuration of another run
        return None
    other = draw.choice(others)
    first, second = path.read_bytes(), other.read_bytes()
    if first == second:
        return None
    path.write_bytes(second)
    other.write_bytes(first)
    return Damage("swap", str(path.relative_to(folder)), f"with {other.relative_to(folder)}")


def _renumber(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    """Another number of the same length."""
    text = path.read_text()
    numbers = list(re.finditer(r"\d+", text))
    if not numbers:
        return None
    found = draw.choice(numbers)
    other = "".join(draw.choice("0123456789") for _ in found[0])
    record = _record(folder, path, "renumber", f"{found[0]} at {found.start()} became {other}", found.start())
    return record if _write(path, (text[: found.start()] + other + text[found.end() :]).encode()) else None


def _repeat_key(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    """A line of one key twice, the second time with another value."""
    lines = path.read_text().splitlines(keepends=True)
    chosen = [n for n, line in enumerate(lines) if re.search(r'^\s*"?[a-z_0-9]+"?: *"?[\w.]+"?,?\n', line)]
    if not chosen:
        return None
    number = draw.choice(chosen)
    again = re.sub(r"(:\s*)(\S+?)(,?\n)", r"\g<1>7\3", lines[number])
    if not again.rstrip().endswith(",") and path.suffix == ".json":
        return None
    start = sum(map(len, lines[:number]))
    record = _record(folder, path, "repeat a key", lines[number].strip(), start)
    path.write_text("".join([*lines[: number + 1], again, *lines[number + 1 :]]))
    return record


def _drop_line(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    lines = path.read_text().splitlines(keepends=True)
    if path.suffix == ".jsonl" or len(lines) < 3:  # a log without a line is a log
        return None
    number = draw.randrange(1, len(lines))
    record = _record(folder, path, "drop a line", lines[number].strip(), sum(map(len, lines[:number])))
    path.write_text("".join([*lines[:number], *lines[number + 1 :]]))
    return record


_VALUES = ("null", "true", '"text"', "[]", "{}", "-1", "1e999", "NaN", "9" * 400, '"\\u0000"', "[[[1]]]")


def _retype(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    """A value of another type."""
    text = path.read_text()
    values = list(re.finditer(r'(?<=: )("[^"\n]*"|-?[\d.]+(?:e-?\d+)?|true|false|null|\[\])', text))
    if not values:
        return None
    found, other = draw.choice(values), draw.choice(_VALUES)
    record = _record(
        folder, path, "retype", f"{found[0]} at {found.start()} became {other[:20]}", found.start()
    )
    return record if _write(path, (text[: found.start()] + other + text[found.end() :]).encode()) else None


def _uncheck_and_retype(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    """As a file of an earlier version, which has no checksum: its values may be any, and none may end in a traceback."""
    text = path.read_text()
    if path.suffix == ".yaml":
        path.write_text(re.sub(r"\A# checksum [^\n]*\n", "", text))
    else:
        path.write_text(re.sub(r',?\s*"checksum": "\w+"', "", text))
    done = draw.choice([_retype, _renumber, _drop_line, _flip])(folder, path, draw)
    detail = "" if done is None else f"{done.kind}, {done.detail}"
    return Damage("no checksum", str(path.relative_to(folder)), detail, is_certain=False)


def _damage_earlier_catalogue(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    """As an earlier version wrote it, without a checksum; its fingerprint covers what it says."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    metadata = {k: v for k, v in table.schema.metadata.items() if k not in (b"checksum", b"version")}
    table = table.replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    done = draw.choice([_flip, _flip, _flip, _zero, _cut])(folder, path, draw)
    detail = "" if done is None else f"{done.kind}, {done.detail}"
    return Damage("catalogue without a checksum", str(path.relative_to(folder)), detail)


def _flip_under_a_right_checksum(folder: Path, path: Path, draw: random.Random) -> Damage | None:
    """A FAISS file that says something else, whose manifest has its checksum."""
    from index import versions
    from index.base.checksums import encode_json

    data = bytearray(path.read_bytes())
    places = [
        draw.randrange(min(len(data), draw.choice([64, 512, len(data)])))
        for _ in range(draw.choice([1, 2, 8]))
    ]
    for place in places:
        data[place] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, data[place] ^ (1 << draw.randrange(8))])
    path.write_bytes(data)
    manifest = path.parent / versions.MANIFEST
    facts = json.loads(manifest.read_text())
    facts["files"][path.name] = {"size_bytes": len(data), "crc32": zlib.crc32(data)}
    manifest.write_bytes(
        encode_json({k: v for k, v in facts.items() if k != "checksum"}, versions.MANIFEST, indent=1)
    )
    return Damage(
        "other contents, right checksum",
        str(path.relative_to(folder)),
        f"bytes at {places}",
        is_certain=False,
    )
