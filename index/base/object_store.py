"""Buckets at s3:// and gs://: full and ranged reads, conditional writes, and retries while the store is unavailable.

A permanent refusal (no such bucket, no access rights) is reported at once, in one line. A store that does not answer is
retried for `_PATIENCE_S` seconds if it has answered this process before, otherwise for `_FIRST_S`.
"""

import errno
import functools
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from index.base.errors import RequestError, StorageError
from index.base.extras import require
from index.base.object_errors import (
    STATUS,
    ChangedError,
    ShortReadError,
    exceptions,
    has_expired,
    is_passing,
    reason_of,
)

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

CONCURRENCY = 128
"""Concurrent requests: the ranges of four batches.
At 20 ms latency, twice as many images arrive as with 64 (1800 against 950/s)."""
CONDITIONAL_BYTES = 8 << 20
"""Larger files are data files with a manifest: they are uploaded in parts, which no store writes conditionally."""
_FILES_AT_ONCE = 8  # whole files, some of them with 8 MiB in memory
_PATIENCE_S = 120.0
_FIRST_S = 4.0
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Tag:
    """The version of an object, as a store reports it when the object is read or written."""

    e_tag: str
    version: str | None = None
    """gs:// writes over an object by its generation, s3:// by the tag"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing."""

    key: str
    size_bytes: int
    e_tag: str


class ConflictError(Exception):
    """A conditional write found another version of the object than expected; never leaves this package."""


class Bucket:
    """One bucket, shared by the threads of a process; `bucket_of` opens it."""

    def __init__(self, endpoint: str, scheme: str, name: str) -> None:
        self.url = f"{scheme}://{name}"
        self._place = f"{self.url} at {endpoint}" if endpoint else self.url
        self._endpoint = endpoint
        self._store = _open_store(endpoint, scheme, name)
        self._has_answered = False
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._tags_are_digests = True
        self._other_digests: dict[str, str] = {}

    def get(self, key: str) -> tuple[bytes, Tag] | None:
        """Return an object's bytes, or None if it does not exist."""
        import obstore

        def read() -> tuple[bytes, Tag]:
            result = obstore.get(self._store, key)
            data, tag = bytes(result.bytes()), _tag(result.meta)
            self._compare(key, tag, hashlib.md5(data, usedforsecurity=False).hexdigest())
            return data, tag

        try:
            return self._ask(key, read)
        except FileNotFoundError:
            return None

    def fetch(self, key: str, path: Path) -> Tag | None:
        """Write an object's bytes to the new file `path`, using a few MB of memory;
        returns None if it does not exist."""
        import obstore

        def read() -> Tag:
            result, digest = obstore.get(self._store, key), hashlib.md5(usedforsecurity=False)
            with path.open("wb") as file:
                for part in result.stream(min_chunk_size=4 << 20):
                    file.write(part)
                    digest.update(part)
                if file.tell() != result.meta["size"]:
                    raise ShortReadError(f"received {file.tell()} of {result.meta['size']} bytes")
            tag = _tag(result.meta)
            self._compare(key, tag, digest.hexdigest())
            return tag

        try:
            return self._ask(key, read)
        except FileNotFoundError:
            return None

    def _compare(self, key: str, tag: Tag, digest: str) -> None:
        """Raise ChangedError if the received bytes do not match the MD5 that most stores use as the object's tag.

        Two equal reads are accepted: for encrypted objects, and for all objects of some stores, the tag is not an MD5.
        """
        wanted = tag.e_tag.strip('"')
        if not self._tags_are_digests or not _MD5.fullmatch(wanted) or digest == wanted:
            return
        with self._lock:
            self._tags_are_digests = self._other_digests.get(key) != digest
            self._other_digests[key] = digest
        if self._tags_are_digests:
            raise ChangedError(f"{self.url}/{key} changed on the way")

    def read_ranges(self, key: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """Read bytes [start, stop) of an object for each range, concurrently; raises FileNotFoundError if it is
        missing."""
        import obstore

        def read() -> list[bytes]:
            # coalesce=0: the caller decides which ranges share a request.
            parts = obstore.get_ranges(self._store, key, starts=starts, ends=stops, coalesce=0)
            return [bytes(part) for part in parts]

        return self._ask(key, read)

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Objects whose key begins with the folder `prefix`, in the store's order."""
        import obstore

        found = self._ask(
            prefix, lambda: obstore.list(self._store, prefix or None, chunk_size=5000).collect()
        )
        for entry in found:
            yield Entry(entry["path"], int(entry["size"]), entry["e_tag"] or "")

    def names(self, prefix: str) -> list[str]:
        """Names of objects and folders in the folder `prefix`, sorted."""
        import obstore

        found = self._ask(prefix, lambda: obstore.list_with_delimiter(self._store, prefix or None))
        keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(key.rstrip("/").rpartition("/")[2] for key in keys)

    def copy(self, source: str, target: str) -> Tag:
        """Copy an object inside the bucket, replacing an existing one."""
        import obstore

        self._ask(source, lambda: obstore.copy(self._store, source, target))
        return _tag(self._ask(target, lambda: obstore.head(self._store, target)))

    def put(self, key: str, data: bytes | Path, *, over: Tag | Literal["any", "nothing"] = "any") -> Tag:
        """Upload an object. `over`: the version that may be replaced; raises ConflictError if another one exists.

        If the store's response was lost but the write succeeded, it is not a conflict.
        """
        import obstore

        mode: PutMode = "overwrite"
        if over == "nothing":
            mode = "create"
        elif isinstance(over, Tag):
            mode = (
                {"e_tag": over.e_tag}
                if over.version is None
                else {"e_tag": over.e_tag, "version": over.version}
            )
        attempts = 0

        def write() -> Any:
            nonlocal attempts
            attempts += 1
            if over == "any":
                return obstore.put(self._store, key, data)
            return obstore.put(self._store, key, data, mode=mode, use_multipart=False)

        try:
            return _tag(self._ask(key, write))
        except (exceptions().AlreadyExistsError, exceptions().PreconditionError) as error:
            present = self.get(key) if attempts > 1 else None
            if present is not None and present[0] == (data if isinstance(data, bytes) else data.read_bytes()):
                return present[1]
            raise ConflictError(key) from error
        except FileNotFoundError as error:  # S3's answer to a conditional write over a deleted object
            raise ConflictError(key) from error

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there count as removed."""
        import obstore

        for start in range(0, len(keys), 1000):
            some = list(keys[start : start + 1000])
            self._ask(some[0], functools.partial(obstore.delete, self._store, some))

    def check_conditions(self, key: str, data: bytes) -> None:
        """Raise RequestError if the store lets a second writer replace the object `key`, which must be new."""
        try:
            self.put(key, data + b" ", over="nothing")
        except ConflictError:
            return
        raise RequestError(
            f"{self._place} has no conditional writes (If-None-Match), so two writers would overwrite each other; keep "
            "runs and indexes at another store or on a disk"
        )

    def _ask(self, key: str, request: Callable[[], _T]) -> _T:
        """Return the result of `request`, repeated while the store is unavailable."""
        started, pause = time.monotonic(), 0.1
        while True:
            try:
                answer = request()
            except (
                FileNotFoundError,
                exceptions().AlreadyExistsError,
                exceptions().PreconditionError,
            ) as error:
                self._note_answer()
                if "NoSuchBucket" in str(error):
                    raise self._refusal(key, error) from None
                raise
            except ChangedError as error:
                self._note_answer()
                if time.monotonic() - started > _PATIENCE_S:
                    raise StorageError(f"{error}, again and again; is the connection sound?") from None
                time.sleep(pause)
            except (exceptions().BaseError, OSError, ShortReadError) as error:
                waited = time.monotonic() - started
                if has_expired(error):
                    # Keys may end between the signature and the answer; the next request gets new ones.
                    if waited > _FIRST_S:
                        raise self._expiry(key, error) from None
                    time.sleep(pause)
                    continue
                if not is_passing(error):
                    raise self._refusal(key, error) from None
                if waited > (_PATIENCE_S if self._has_answered else _FIRST_S):
                    raise self._absence(error, waited) from None
                if self._has_answered:
                    self._note_absence(error)
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
            else:
                self._note_answer()
                return answer

    def _note_absence(self, error: Exception) -> None:
        with self._lock:
            is_first, self._away_since = self._away_since is None, self._away_since or time.monotonic()
        if is_first:
            logger.warning(
                "%s does not answer (%s); waiting for it, up to %d s",
                self._place,
                reason_of(error),
                _PATIENCE_S,
            )

    def _note_answer(self) -> None:
        self._has_answered = True
        if self._away_since is None:
            return
        with self._lock:
            since, self._away_since = self._away_since, None
        if since is not None:
            logger.warning("%s answers again, after %.0f s", self._place, time.monotonic() - since)

    def _absence(self, error: Exception, waited: float) -> Exception:
        text = f"{self._place} does not answer ({reason_of(error)}), retried for {waited:.0f} s"
        if self._has_answered:
            return StorageError(f"{text}; published data is unchanged, and the same command resumes")
        return RequestError(
            f"{text}; nothing was started (is the address right? s3:// uses AWS_ENDPOINT_URL)"
        )

    def _expiry(self, key: str, error: Exception) -> Exception:
        text = f"the credentials for {self.url}/{key} have expired ({reason_of(error)})"
        if self._has_answered:
            return StorageError(
                f"{text}; published data is unchanged, and the same command resumes with new ones"
            )
        return RequestError(
            f"{text}; nothing was started (new keys, or a token file that is renewed: AWS_WEB_IDENTITY_TOKEN_FILE)"
        )

    def _refusal(self, key: str, error: Exception) -> Exception:
        text = str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(
                f"{self.url}/{key} does not fit on this machine's disk: {error.strerror} (free some space, or set "
                "FSL_DIST_CACHE, or the cache_dir of an index service, to a folder on a larger disk)"
            )
        if "NoSuchBucket" in text or "bucket does not exist" in text.lower():
            return RequestError(f"{self._place} does not exist; create the bucket first, or use another one")
        status = STATUS.search(text)
        known = exceptions()
        is_denied = isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError)
        if is_denied or (status and status[1] in ("401", "403")):
            return RequestError(
                f"no rights at {self.url}/{key} ({reason_of(error)}); credentials come from the environment "
                "(AWS_ACCESS_KEY_ID …, GOOGLE_APPLICATION_CREDENTIALS)"
            )
        return StorageError(f"{self.url}/{key}: {reason_of(error)}")


@functools.cache
def bucket_of(endpoint: str, scheme: str, name: str) -> Bucket:
    """Return the bucket `name`. No request is sent yet; the first one finds out whether the bucket exists."""
    return Bucket(endpoint, scheme, name)


@functools.cache
def request_pool(process: int) -> ThreadPoolExecutor:
    """The threads of this `process` (its id) that wait for answers."""
    return ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="objects")


def concurrently(work: Callable[[_T], object], items: Sequence[_T]) -> None:
    """Apply `work` to each of `items` concurrently; raise the first error after all have ended."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        futures = [pool.submit(work, item) for item in items]
    for future in futures:
        future.result()


def region() -> str:
    """The region for requests to s3://."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _open_store(endpoint: str, scheme: str, name: str) -> "ObjectStore":
    require("obstore")
    from obstore.store import GCSStore, S3Store

    # Retries are done in `_ask`: those of the library would end at another time than the message says.
    retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    options: Any = {
        "connect_timeout": "3s",
        "read_timeout": "60s",
        "timeout": "300s",
        "allow_http": endpoint.startswith("http://"),
    }
    try:
        if scheme == "gs":
            return GCSStore(name, client_options=options, retry_config=retries)
        settings: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
        return S3Store(name, region=region(), client_options=options, retry_config=retries, **settings)
    except Exception as error:
        raise RequestError(f"{scheme}://{name} cannot be opened: {reason_of(error)}") from None


def _tag(meta: Any) -> Tag:
    version = meta.get("version")
    return Tag(meta.get("e_tag") or "", None if version in (None, "null") else version)
