"""Reads what W&B wrote offline: a log of records in LevelDB's format, each a protocol buffer."""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER_BYTES = 7
_BLOCK_BYTES = 32768
_FULL, _FIRST, _LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """One offline run, as W&B would send it."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """values by name, `_step` among them, in the order they were logged"""
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline(folder: Path, *, wait_s: float = 10.0) -> list[OfflineRun]:
    """The offline runs in a folder that W&B was given as `dir`, in the order of the seconds that they were started in.

    W&B's own process writes them, and may end a file a moment after the run: those without an end are waited for.
    """
    deadline = time.monotonic() + wait_s
    while True:
        runs = [_read(path) for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]
        if all(run.exit_code is not None for run in runs) or time.monotonic() > deadline:
            return runs
        time.sleep(0.05)


def _read(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
            run.job_type, run.project = record.run.job_type, record.run.project
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            row = _values(record.history.item)
            run.rows.append({**row, "_step": record.history.step.num})
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> list[bytes]:
    """The records of a log, put together where they were cut at a block's end; the file's own header is left out."""
    found: list[bytes] = []
    parts, offset = b"", _HEADER_BYTES
    while offset + _HEADER_BYTES <= len(data):
        left = _BLOCK_BYTES - offset % _BLOCK_BYTES
        if left < _HEADER_BYTES:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + _HEADER_BYTES])
        if kind == 0:
            break
        body = data[offset + _HEADER_BYTES : offset + _HEADER_BYTES + length]
        if len(body) < length:  # it is being written
            break
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            found.append(parts)
        offset += _HEADER_BYTES + length
    return found
