"""Published files: written completely or not at all, checked when read, fenced by an owner.

Readers never see a half-written file. A file or folder is finished under a temporary name in the same location, forced
to disk, and renamed; the rename is the only publishing step. A path that represents an object at s3:// or gs://
(`index.base.object_cache`) is uploaded before it is renamed here.
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
    """Replace `path` by `data` in one step: a reader sees the old bytes or the new ones, even after a crash."""
    with replacing(path) as file:
        file.write(data)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as .npy in one step, for `open_array`; object arrays are refused."""
    with replacing(path) as file:
        # Not the file itself: NumPy would bypass Python's write, and the error of a full disk would give no reason.
        np.save(types.SimpleNamespace(write=file.write), array, allow_pickle=False)


def write_vectors(path: Path, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> int:
    """Write a float32 .npy file of the given `shape` in one step, from `blocks` of its rows; return its CRC-32.

    The bytes are the same as those of `write_array`; memory use is one block.
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
    """Yield a file that replaces `path` in one step at the end of the block; an OSError names `path`.

    is_forced: wait until the file is on disk. Otherwise a crash of the machine may leave a truncated file.
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
        if isinstance(error, OSError):  # for a full disk Python gives only the reason, NumPy not even that
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    if is_forced:
        _sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files of `replacing` at or below `folder`, left by killed processes."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Write a new file in one step and force it to disk; raises FileExistsError if it exists.

    If two processes write the same name, one of them gets the error. An OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{new_token()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        object_cache.put_file(temporary, path, is_new=True)
        os.link(temporary, path)  # rename() would replace an existing file
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


def new_token() -> str:
    """Return 48 random bits as 12 hexadecimal digits: a name that no other writer has."""
    return secrets.token_hex(6)


def open_array(path: Path) -> np.ndarray:
    """Map a .npy file read-only, without unpickling. Raises VersionError for any other file."""
    if not path.exists():  # written by another machine
        object_cache.bring(path.parent, wanted=lambda name: name == path.name)
    try:
        return map_array(path)
    except FileNotFoundError:
        raise VersionError(f"{path} is missing; build the index again") from None
    except ValueError as error:
        raise VersionError(f"{path} is not a readable .npy array: {error}") from None


def map_array(path: Path) -> np.ndarray:
    """Map a .npy file read-only, without unpickling.
    Raises ValueError (one line) for other content, OSError like `open`.

    The header is checked before NumPy allocates or maps the size that it declares.
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
        ) as error:  # NumPy parses the header as Python code: any exception means that it is invalid
            raise ValueError(f"its header is damaged ({' '.join(str(error).split())[:200]})") from None
        if dtype.hasobject:
            raise ValueError("it contains Python objects")
        size = dtype.itemsize * math.prod(shape)
        left = os.fstat(file.fileno()).st_size - file.tell()
        if min(shape, default=0) < 0 or size > left:
            raise ValueError(f"its header declares {dtype} {list(shape)}, but {left} bytes follow")
        order: Literal["C", "F"] = "F" if is_fortran else "C"
        if size == 0:  # nothing to map
            return np.empty(shape, dtype, order)
        return np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)


def pack_arrays(**arrays: np.ndarray | str | int) -> bytes:
    """Encode named arrays as the bytes of an .npz file, for `unpack_arrays`."""
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # texts and numbers become arrays
    return packed.getvalue()


def unpack_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file by name, without unpickling. Raises VersionError if the file is damaged.

    The CRC-32 of every member is compared before NumPy reads its header: NumPy stops where the array ends, so a header
    with too few rows would hide the remaining bytes.
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
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types for a damaged archive
        raise VersionError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


def read_text(path: Path) -> str:
    """Read a small UTF-8 text file. Raises VersionError if it does not exist."""
    object_cache.bring_file(path)
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise VersionError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise VersionError(f"{path} cannot be read: {error}") from None


def exists(path: Path) -> bool:
    """Whether a small file exists; it is downloaded from an object store if necessary."""
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
    """Create an empty folder; remove the content that an unfinished earlier attempt left under that name."""
    remove_folder(folder)
    folder.mkdir(parents=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder and its content, if it exists."""
    object_cache.drop(folder)
    shutil.rmtree(folder, ignore_errors=True)


def remove_file(path: Path) -> None:
    """Remove a file, if it exists."""
    object_cache.drop_file(path)
    path.unlink(missing_ok=True)


def publish_folder(staging: Path, final: Path) -> None:
    """Make the finished folder `staging` visible as `final` in one step; raises VersionError if `final` exists."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _sync_folder(staging)
    if object_cache.place_of(final) is not None:
        object_cache.put_folder(staging, final)
        shutil.rmtree(final, ignore_errors=True)  # an old copy of what the store once had under this name
    # rename() silently replaces an empty folder, hence this check; it refuses a full one by itself.
    elif final.exists():
        raise VersionError(f"{final} already exists; a published folder is never replaced")
    try:
        staging.rename(final)
    except OSError as error:
        raise VersionError(f"{staging} cannot be published as {final}: {error.strerror}") from None
    _sync_folder(final.parent)


@contextlib.contextmanager
def hold_lock(path: Path, *, waits: bool = False) -> Iterator[None]:
    """Hold the lock file `path` during the block, then remove it.

    The system releases the lock when the process ends, so a killed writer blocks nobody. If another process holds the
    lock, this waits for it, or raises RequestError unless `waits`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
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
    """Remove what killed writers left in a staging folder and return the names.

    Entries are kept if they are in `keep` or were written to within the last `older_than_s` seconds: the staging area
    of an active process is younger.
    """
    removed = []
    for name in list_folder(folder):
        path = folder / name
        if name in keep:
            continue
        try:
            newest = max(p.stat().st_mtime for p in (path, *path.glob("*")))
        except OSError:  # another process has just removed it
            continue
        if time.time() - newest >= older_than_s:
            remove_folder(path)
            removed.append(name)
    return removed


@dataclass(frozen=True, slots=True)
class Owner:
    """A claim on a folder. A later claim invalidates every earlier one; copies work in other processes."""

    folder: Path
    """The folder that is owned."""

    epoch: int
    """Number of the claim, from 1; the highest one owns the folder."""

    @classmethod
    def claim(cls, folder: Path) -> "Owner":
        """Become the owner: increase the folder's epoch by one, and create the folder if necessary."""
        folder = object_cache.working_folder(
            folder
        ).absolute()  # workers that check it may have other working directories
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        while True:
            epoch = _highest_epoch(folder) + 1
            try:
                # If two processes saw the same highest number, one of them finds that the file exists.
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
        newer = path.read_text("utf-8") if highest > self.epoch else "its owner files are missing"
        raise StaleOwnerError(
            f"{self.folder} is owned by claim {highest} ({newer or 'being written'}); this process holds "
            f"claim {self.epoch} and stops writing"
        )


def _highest_epoch(folder: Path) -> int:
    return max((int(name) for name in list_folder(folder / _OWNER) if name.isdecimal()), default=0)


def _write_claim(path: Path, data: bytes) -> None:
    """Write a new claim; raises FileExistsError if it exists."""
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
