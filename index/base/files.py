"""Files that are published: written whole or not at all, read back with checks, fenced by an owner.

Nothing is ever seen half written: a file or a folder is finished under another name in the same place, forced to
the disk, and renamed. A rename is the only publishing step. A path that stands for a place at s3:// or gs:// (`index.base.object_cache`)
is put there before it is renamed here.
"""

import contextlib
import datetime
import fcntl
import io
import json
import math
import os
import secrets
import shutil
import socket
import time
import types
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from index.base import object_cache
from index.base.errors import RequestError, StaleOwnerError, VersionError
from index.base.object_store import ConflictError

_OWNER = "owner"
_CHUNK_BYTES = 1 << 20


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: a reader sees the old bytes or the new ones, also after a crash."""
    with replacing(path) as file:
        file.write(data)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as .npy in one step, for `open_array`; objects are refused."""
    with replacing(path) as file:
        # Not the file itself: NumPy then writes past Python, and a full disk is an error without a reason.
        np.save(types.SimpleNamespace(write=file.write), array, allow_pickle=False)


def write_vectors(path: Path, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> int:
    """Write a .npy file float32 `shape` in one step from `blocks` of its rows; returns the CRC-32 of its bytes.

    The same bytes as `write_array` would write, in the memory of one block.
    """
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    crc = zlib.crc32(header.getvalue())
    with replacing(path) as file:
        file.write(header.getvalue())
        for block in blocks:
            data = np.ascontiguousarray(block, dtype="<f4").reshape(-1).view(np.uint8).data
            crc = zlib.crc32(data, crc)
            file.write(data)
    return crc


@contextlib.contextmanager
def replacing(path: Path, *, is_forced: bool = True) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` in one step at the block's end; an OSError names `path`.

    is_forced: wait until it is on the disk. Without, a crash of the machine may leave a file that is cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{new_token()}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            if is_forced:
                file.flush()
                os.fsync(file.fileno())
        object_cache.put_file(temporary, path)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # of a full disk Python says the reason alone, NumPy not even that
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    if is_forced:
        _sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what `replacing` was writing at or below `folder` when its process was killed."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is not there yet, in one step and forced to the disk; FileExistsError where it is there.

    Of two processes that write the same name, one is refused. An OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{new_token()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        object_cache.put_file(temporary, path, is_new=True)
        os.link(temporary, path)  # rename() would replace what is there
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


def new_token() -> str:
    """48 random bits as 12 hexadecimal digits: a name that no other writer has."""
    return secrets.token_hex(6)


def open_array(path: Path) -> np.ndarray:
    """Map a .npy file read-only; never unpickles. Raises VersionError for a file that is no such array."""
    if not path.exists():  # written by another machine
        object_cache.bring(path.parent, wanted=lambda name: name == path.name)
    try:
        return map_array(path)
    except FileNotFoundError:
        raise VersionError(f"{path} is missing; build the index again") from None
    except ValueError as error:
        raise VersionError(f"{path} is not a readable .npy array: {error}") from None


def map_array(path: Path) -> np.ndarray:
    """Map a .npy file read-only; never unpickles. Raises ValueError, one line, for any other content, OSError as `open` does.

    The header is judged before NumPy allocates or maps what it declares.
    """
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, is_fortran, dtype = read_header(file)
        except (
            Exception
        ) as error:  # NumPy parses the header as Python: whatever that raises says that it is none
            raise ValueError(f"its header is damaged ({' '.join(str(error).split())[:200]})") from None
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        size = dtype.itemsize * math.prod(shape)
        left = os.fstat(file.fileno()).st_size - file.tell()
        if min(shape, default=0) < 0 or size > left:
            raise ValueError(f"its header says {dtype} {list(shape)}, and {left} bytes follow")
        order: Literal["C", "F"] = "F" if is_fortran else "C"
        if size == 0:  # nothing to map
            return np.empty(shape, dtype, order)
        return np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)


def pack_arrays(**arrays: np.ndarray | str | int) -> bytes:
    """Named arrays as the bytes of an .npz file, for `unpack_arrays`."""
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # texts and numbers become arrays
    return packed.getvalue()


def unpack_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; never unpickles. Raises VersionError for one that is damaged.

    Every member is compared with its CRC-32 before NumPy reads a header: it stops where the array ends, and a header that
    says too few rows would hide what follows.
    """
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except OSError as error:
        raise VersionError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of a damaged archive zipfile, zlib and NumPy raise a dozen kinds
        raise VersionError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


def read_text(path: Path) -> str:
    """The UTF-8 text of a small file. Raises VersionError where there is none."""
    object_cache.bring_file(path)
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise VersionError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise VersionError(f"{path} cannot be read: {error}") from None


def exists(path: Path) -> bool:
    """Whether there is a file; a small one, since it is brought from an object store."""
    object_cache.bring_file(path)
    return path.exists()


def crc32_of_file(path: Path) -> int:
    """CRC-32 of the whole file, read in pieces of 1 MiB."""
    crc = 0
    with path.open("rb") as file:
        while part := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(part, crc)
    return crc


def list_folder(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where the folder does not exist."""
    place = object_cache.place_of(folder)
    if place is not None:
        return place.bucket.names(place.prefix)
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def create_folder(folder: Path) -> None:
    """Make an empty folder; whatever an unfinished earlier attempt left under that name is removed."""
    remove_folder(folder)
    folder.mkdir(parents=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it; nothing to do where there is none."""
    object_cache.drop(folder)
    shutil.rmtree(folder, ignore_errors=True)


def remove_file(path: Path) -> None:
    """Remove a file; nothing to do where there is none."""
    object_cache.drop_file(path)
    path.unlink(missing_ok=True)


def publish_folder(staging: Path, final: Path) -> None:
    """Make the finished folder `staging` visible as `final` in one step; raises VersionError if that exists."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _sync_folder(staging)
    if object_cache.place_of(final) is not None:
        object_cache.put_folder(staging, final)
        shutil.rmtree(final, ignore_errors=True)  # what the store had under this name once
    # rename() replaces an empty folder without a word, hence the question; a full one it refuses by itself.
    elif final.exists():
        raise VersionError(f"{final} exists already; a published folder is never replaced")
    try:
        staging.rename(final)
    except OSError as error:
        raise VersionError(f"{staging} cannot be published as {final}: {error.strerror}") from None
    _sync_folder(final.parent)


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, and remove it afterwards.

    The system lets go of it when the process dies, so a killed writer locks nobody out. RequestError where another
    process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between open and lock: then the lock is on nothing.
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise RequestError(
                f"'{path}' is locked: another process is writing there; wait until it has ended"
            ) from None
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def remove_stale_staging(
    folder: Path, *, keep: Collection[str] = (), older_than_s: float = 86400.0
) -> list[str]:
    """Remove what killed writers left in a staging folder and return its names.

    Only entries not named in `keep` and not written to for `older_than_s` seconds go: a staging area of a
    process that is still at work is younger.
    """
    removed = []
    for name in list_folder(folder):
        path = folder / name
        if name in keep:
            continue
        try:
            newest = max(p.stat().st_mtime for p in (path, *path.glob("*")))
        except OSError:  # somebody else removed it just now
            continue
        if time.time() - newest >= older_than_s:
            remove_folder(path)
            removed.append(name)
    return removed


@dataclass(frozen=True, slots=True)
class Owner:
    """A claim on a folder. A later claim makes every earlier one stale; copies work in other processes."""

    folder: Path
    """The folder that is owned."""

    epoch: int
    """Number of the claim, from 1; the highest one owns the folder."""

    @classmethod
    def claim(cls, folder: Path) -> "Owner":
        """Become the owner: raise the folder's epoch by one, creating the folder where it is missing."""
        folder = object_cache.working_folder(
            folder
        ).absolute()  # workers that check have working folders of their own
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        while True:
            epoch = _highest_epoch(folder) + 1
            try:
                # Between two processes that saw the same highest number, one finds the file there.
                _write_claim(folder / _OWNER / f"{epoch:08d}", json.dumps(record).encode())
            except FileExistsError:
                continue
            return cls(folder, epoch)

    def check(self) -> None:
        """Raise StaleOwnerError if another process has claimed the folder since; call it before publishing."""
        highest = _highest_epoch(self.folder)
        if highest == self.epoch:
            return
        path = self.folder / _OWNER / f"{highest:08d}"
        object_cache.bring_file(path)
        newer = path.read_text("utf-8") if highest > self.epoch else "its owner files are gone"
        raise StaleOwnerError(
            f"{self.folder} is owned by claim {highest} ({newer or 'being written'}); this process holds "
            f"claim {self.epoch} and writes no more"
        )


def _highest_epoch(folder: Path) -> int:
    return max((int(name) for name in list_folder(folder / _OWNER) if name.isdecimal()), default=0)


def _write_claim(path: Path, data: bytes) -> None:
    """Write a claim that is not there yet; FileExistsError where it is."""
    place = object_cache.place_of(path)
    if place is not None:
        try:
            place.bucket.put(place.key, data, over="nothing")
        except ConflictError:
            raise FileExistsError(path) from None
        place.bucket.check_conditions(place.key, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(data.decode())
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
