"""Working folders on the local disk for folders at s3:// and gs://.

    CACHE/fsl-dist-objects/ENDPOINT/s3/BUCKET/KEY…     the working folder of s3://BUCKET/KEY…
    CACHE/fsl-dist-tags/ENDPOINT/s3/BUCKET/KEY…        the version of each object that its file contains (objects.Tag)

Every path below fsl-dist-objects represents an object; any other path is a plain file. `bring` updates files from their
objects before they are read. `index.base.files` uploads a file before it is published here, so a file under its final
name is always in the store. An object is replaced only if it is the version that this working folder saw last; an
object that must be new is uploaded with a put-if-absent request.
"""

import contextlib
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from index.base.errors import RequestError, StaleOwnerError, VersionError
from index.base.object_copies import (
    OBJECTS,
    fetch_object,
    forget_file,
    has_bytes,
    is_current,
    read_tag,
    tag_path,
    temporary_of,
    write_copy,
    write_tag,
)
from index.base.object_store import (
    CONDITIONAL_BYTES,
    Bucket,
    ConflictError,
    bucket_of,
    concurrently,
    region,
)

_T = TypeVar("_T")

_URL = re.compile(r"^(s3|gs):/+([^/]*)/*(.*?)/*$")
_COPIED_BYTES = 5 * 10**9  # what S3 copies in one request
_OTHER_URL = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|(?:s3|gs):/)")  # a Path of s3://… has one slash


@dataclass(frozen=True, slots=True)
class Place:
    """Location of a file or folder in an object store."""

    endpoint: str
    """address of the service; empty: the provider's own"""
    scheme: str
    bucket_name: str
    key: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket_name}/{self.key}".rstrip("/")

    @property
    def bucket(self) -> Bucket:
        return bucket_of(self.endpoint, self.scheme, self.bucket_name)

    @property
    def arrow_uri(self) -> str:
        """The address in the form that pyarrow's file systems expect."""
        if not self.endpoint:
            return self.url
        address = urllib.parse.urlsplit(self.endpoint)
        told = {"scheme": address.scheme, "endpoint_override": address.netloc, "region": region()}
        return f"{self.url}?{urllib.parse.urlencode(told)}"

    def key_of(self, name: str) -> str:
        return f"{self.key}/{name}" if self.key else name

    @property
    def prefix(self) -> str:
        return f"{self.key}/" if self.key else ""


def cache_folder() -> Path:
    """The folder for working folders: FSL_DIST_CACHE, otherwise the user's cache folder."""
    named = os.environ.get("FSL_DIST_CACHE", "")
    user = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
    return (Path(named) if named else Path(user) / "fsl-dist").expanduser().absolute()


def is_url(text: str) -> bool:
    """Whether this names something at a store or a server, not on a disk."""
    return bool(_OTHER_URL.match(text))


def working_folder(place: str | Path, cache: Path | None = None) -> Path:
    """Return the path for `place`: the working folder of an s3:// or gs:// address, any other path unchanged.

    cache: the folder for working folders; by default `cache_folder()`. Raises RequestError for another kind of address,
    or for one without a bucket or a key.
    """
    text = str(place)
    if "\0" in text:
        raise RequestError(f"{text!r} is not a path: it contains a NUL character")
    found = _URL.match(text)
    if found is None:
        if is_url(text):
            raise RequestError(f"'{text}' is not a supported location: use a path, s3://… or gs://…")
        return Path(place)
    scheme, bucket, key = found.groups()
    if not bucket or not key or ".." in key.split("/"):
        raise RequestError(f"'{text}' must name a bucket and a folder in it: {scheme}://BUCKET/FOLDER")
    endpoint = ""
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    named = urllib.parse.quote(endpoint.rstrip("/"), safe="") or "-"
    return (cache or cache_folder()) / OBJECTS / named / scheme / bucket / key


def place_of(path: Path) -> Place | None:
    """Return the object-store location of a path; None for a path on a disk."""
    parts = path.parts
    if OBJECTS not in parts:
        return None
    start = parts.index(OBJECTS) + 1
    if len(parts) < start + 3:
        return None
    endpoint, scheme, bucket, *key = parts[start:]
    return Place("" if endpoint == "-" else urllib.parse.unquote(endpoint), scheme, bucket, "/".join(key))


def with_addresses(text: str) -> str:
    """`text` with the addresses of working folders in place of their paths."""
    root = re.escape(str(cache_folder()))
    return re.sub(rf"(?:{root}|[^\s'\"]*)/{OBJECTS}/[^/\s]+/(s3|gs)/", r"\1://", text)


def on_disk(place: str | Path, what: str) -> Path:
    """Return `place` as a path; raises RequestError, naming `what`, if it is at an object store."""
    path = working_folder(place)
    if place_of(path) is not None:
        raise RequestError(
            f"{what} works on a disk alone; '{with_addresses(str(path))}' is at an object store"
        )
    return path


def bring(
    folder: Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    removes_others: bool = False,
    is_intact: Callable[[str, Path], bool] | None = None,
) -> list[str]:
    """Update files of a working folder from the store; does nothing for a folder on a disk.

    Files whose object was deleted are removed.

    Args:
        folder: the working folder.
        wanted: names relative to `folder`, with slashes.
        removes_others: also remove files that never were objects, such as the unfinished files of a killed process.
        is_intact: compares a fetched file (its name, and the path that its bytes have meanwhile) with what is known of
            it. A file that is not intact is fetched again; an intact one is forced to disk before it gets its name.

    Returns:
        Names of the files that were not intact after three fetches. They are not in the folder.
    """
    place = place_of(folder)
    if place is None:
        return []
    entries = {
        name: entry
        for entry in place.bucket.entries(place.prefix)
        if (name := entry.key.removeprefix(place.prefix)) and wanted(name)
    }
    missing = [name for name, entry in entries.items() if not is_current(folder / name, entry)]
    damaged: list[str] = []

    def fetch(name: str) -> None:
        check = None if is_intact is None else partial(is_intact, name)
        if not fetch_object(place.bucket, folder / name, entries[name], check):
            forget_file(folder / name)
            damaged.append(name)

    if missing:
        concurrently(fetch, missing)
    for path in [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []:
        name = path.relative_to(folder).as_posix()
        if name in entries or not wanted(name):
            continue
        if removes_others or tag_path(path).exists():
            forget_file(path)
    return sorted(damaged)


def sizes_below(folder: Path) -> dict[str, int]:
    """Size in bytes of every object below a working folder, by its name there; none for a folder on a disk."""
    place = place_of(folder)
    if place is None:
        return {}
    return {e.key.removeprefix(place.prefix): e.size_bytes for e in place.bucket.entries(place.prefix)}


def bring_file(path: Path) -> None:
    """`bring` for a single file."""
    place = place_of(path)
    if place is None:
        return
    found = place.bucket.get(place.key)
    if found is None:
        forget_file(path)
    elif not has_bytes(path, found[0]) or read_tag(path) != found[1]:
        write_copy(path, *found)


def read_again(path: Path, read: Callable[[], _T]) -> _T:
    """Return the result of `read`, which reads `path` and compares its checksum.

    At an object store it is tried three times, because the tags of encrypted objects do not show bytes that changed on
    the way. Raises VersionError like `read`.
    """
    for _ in range(2 if OBJECTS in path.parts else 0):
        with contextlib.suppress(VersionError):
            return read()
    return read()


def put_file(source: Path, final: Path, *, is_new: bool = False) -> None:
    """Upload the bytes of `source` to the object of `final`; does nothing on a disk.

    is_new: raise FileExistsError if the object exists. Otherwise the object is replaced only if it is the version that
    this working folder saw last; raises StaleOwnerError if another process has replaced it since.
    """
    place = place_of(final)
    if place is None:
        return
    bucket = place.bucket
    size = source.stat().st_size
    if is_new or size <= CONDITIONAL_BYTES:
        seen = read_tag(final)
        try:
            tag = bucket.put(place.key, source.read_bytes(), over="nothing" if is_new else seen or "nothing")
        except ConflictError:
            if is_new:
                raise FileExistsError(None, "exists already", place.url) from None
            raise StaleOwnerError(
                f"{place.url} was written by another process since this one read it; this one stops writing"
            ) from None
    else:
        tag = bucket.put(place.key, source)
    write_tag(final, tag)


def put_same(source: Path, final: Path) -> bool:
    """Upload a file that may exist already with the same bytes; return whether the object has these bytes now."""
    try:
        put_file(source, final, is_new=True)
    except FileExistsError:
        place = place_of(final)
        assert place is not None
        found = place.bucket.get(place.key)
        return found is not None and found[0] == source.read_bytes()
    return True


def put_folder(source: Path, final: Path) -> None:
    """Upload a finished folder to the location of `final`:
    data files concurrently, then its .json, which marks it complete.

    Remains of a killed attempt are removed first. Raises VersionError if a complete folder exists.
    """
    place = place_of(final)
    if place is None:
        return
    bucket = place.bucket
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    seals = sorted(name for name in names if "/" not in name and name.endswith(".json"))
    present = [entry.key for entry in bucket.entries(place.prefix)]
    if any(place.key_of(name) in present for name in seals):
        raise VersionError(f"{place.url} already exists; a published folder is never replaced")
    if present:
        bucket.delete(present)
    data = [name for name in names if name not in seals]
    for name in names:  # remains of an earlier attempt
        tag_path(final / name).unlink(missing_ok=True)
    if data:
        concurrently(lambda name: _put_data(source / name, final / name), data)
    try:
        for name in seals:
            put_file(source / name, final / name, is_new=True)
    except FileExistsError:
        raise VersionError(f"{place.url} already exists; another process has just published it") from None


def _put_data(source: Path, final: Path) -> None:
    """`put_file`, copied inside the store if its bytes are already there, as those of a staging area are."""
    there, place, tag = place_of(source), place_of(final), read_tag(source) if place_of(source) else None
    if there is None or place is None or tag is None or source.stat().st_size > _COPIED_BYTES:
        put_file(source, final)
    else:
        write_tag(final, place.bucket.copy(there.key, place.key))


def put_appended(path: Path) -> None:
    """Upload the current content of a growing file, or of a folder of such files."""
    if place_of(path) is None:
        return
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            copy = temporary_of(file)
            shutil.copyfile(file, copy)  # it may grow while it is sent
            try:
                put_file(copy, file)
            finally:
                copy.unlink()


def drop(folder: Path, *, keep: Collection[str] = ()) -> None:
    """Delete the objects below a working folder, the .json first: a folder without it never counts as complete."""
    place = place_of(folder)
    if place is None:
        return
    keys = [entry.key for entry in place.bucket.entries(place.prefix)]
    seals = [key for key in keys if key.endswith(".json") and "/" not in key.removeprefix(place.prefix)]
    if seals:
        place.bucket.delete(seals)
    rest = [key for key in keys if key not in seals]
    if rest:
        place.bucket.delete(rest)
    shutil.rmtree(tag_path(folder), ignore_errors=True)


def drop_file(path: Path) -> None:
    """Delete the object that a path represents."""
    place = place_of(path)
    if place is not None:
        place.bucket.delete([place.key])
        tag_path(path).unlink(missing_ok=True)
