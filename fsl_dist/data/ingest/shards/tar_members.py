"""The members of an untrusted tar file: where their bytes are, and which are refused. Extracts nothing."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from fsl_dist.data.write_report import BadSample

_BLOCK = 512
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LINKS = {tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link"}
_DEVICES = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe"}
# Names and attributes of one member; a header that declares more is damaged.
_MAX_HEADER_BYTES = 1 << 20
# Archives are padded with zeros to whole records, for tapes up to 1 MiB each. A longer run of zeros is not padding.
_MAX_PADDING_BYTES = 1 << 20
_COMPRESSED = "compressed with {}: byte ranges cannot be read in it, so unpack it with `{}` first"
# Content that is often found instead of a tar file, by its first bytes; case-insensitive.
_KINDS = {
    b"\x1f\x8b": _COMPRESSED.format("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": _COMPRESSED.format("zstd", "unzstd"),
    b"BZh": _COMPRESSED.format("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": _COMPRESSED.format("xz", "unxz"),
    b"\x04\x22\x4d\x18": _COMPRESSED.format("lz4", "unlz4"),
    b"\x1f\x9d": _COMPRESSED.format("compress", "uncompress"),
    b"LZIP": _COMPRESSED.format("lzip", "lzip -d"),
    b"\x5d\0\0": _COMPRESSED.format("lzma", "unlzma"),
    b"PK\x03\x04": "a zip archive: unpack it, and `pack` its images",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it, and `pack` its images",
    b"Rar!": "a rar archive: unpack it, and `pack` its images",
    b"version https://git-lfs": "a git-lfs pointer: `git lfs pull` downloads the file itself",
    b"<!DOCTYPE html": "an HTML page: the download failed, so download it again",
    b"<html": "an HTML page: the download failed, so download it again",
    b"<?xml": "an XML page, such as a store's error: the download failed, so download it again",
    b"<Error>": "an XML page, such as a store's error: the download failed, so download it again",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar file."""

    name: str
    offset: int
    """first byte of its content"""
    size: int
    """bytes"""


@dataclass(frozen=True, slots=True)
class NextArchive:
    """Another archive follows in the same file (`cat a.tar b.tar`)."""

    offset: int
    """its first byte"""


class _DamageError(Exception):
    """The rest of the file cannot be read; its text completes "shard …"."""


def list_members(descriptor: int, shard: str) -> Iterator[Member | NextArchive | BadSample]:
    """Yield the regular members of the open tar file `shard` (its name in reports), in order;
    refused ones as BadSample.

    Reads USTAR, GNU and pax archives, also several in one file. Absolute paths, `..`, links, devices, sparse and
    unknown kinds are refused. A file that is damaged, truncated, empty or not a tar file gives one BadSample that
    ends the list; so does one without the two zero blocks at its end, because members may be missing. Folders are
    ignored. Reads only headers.
    """
    end = os.fstat(descriptor).st_size
    position, is_empty, is_next = 0, True, False
    try:
        while True:
            info = _read_header(descriptor, position, end, is_next=is_next)
            if info is None:
                following = _find_next_archive(descriptor, position, end)
                if following is None:
                    break
                position, is_next = following, True
                continue
            if is_next and not is_empty:
                yield NextArchive(position)
            is_empty = is_next = False
            header, position = position, position + _BLOCK
            long_name, attributes = "", dict[str, str]()
            while info.type in (
                *_EXTENDED,
                tarfile.XGLTYPE,
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
            ):
                if not 0 <= info.size <= _MAX_HEADER_BYTES:
                    raise _damaged(header, end, f"a header of {info.size} bytes")
                content = os.pread(descriptor, info.size, position)
                if len(content) < info.size:
                    raise _DamageError(f"is cut: it ends at byte {end}, inside a header")
                position += _padded(info.size)
                if info.type in _EXTENDED:
                    attributes |= _parse_attributes(content, header, end)
                elif info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
                following_info = _read_header(descriptor, position, end)
                if following_info is None:
                    raise _damaged(position, end, "no member follows an extended header")
                info, position = following_info, position + _BLOCK
            name = attributes.get("path") or long_name or info.name
            size = _read_size(attributes, info.size, header, end)
            is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(
                n.startswith("GNU.sparse") for n in attributes
            )
            if info.type == tarfile.GNUTYPE_SPARSE:
                position = _skip_sparse_map(descriptor, position)
            has_content = info.type in _REGULAR or is_sparse or info.type not in tarfile.SUPPORTED_TYPES
            offset, position = position, position + (_padded(size) if has_content else 0)
            if has_content and offset + size > end:
                raise _DamageError(f"is cut: '{name}' reaches beyond its end at byte {end}")
            if info.type == tarfile.DIRTYPE:
                continue
            reason = _refuse(name, info.type, is_sparse)
            if reason:
                yield BadSample(f"{shard}:{_printable(name)}", reason)
            else:
                yield Member(name, offset, size)
        if is_empty:
            yield BadSample(shard, f"is empty: a tar file without members ({end} zero bytes)")
    except _DamageError as error:
        yield BadSample(shard, _printable(str(error)))


def _read_header(
    descriptor: int, position: int, end: int, *, is_next: bool = False
) -> tarfile.TarInfo | None:
    """The header at `position`; None for a block of zeros. is_next: it follows an end mark."""
    if end == 0:
        raise _DamageError("is empty: it has 0 bytes")
    if position >= end:
        raise _DamageError(
            f"is cut: it ends at byte {end} without the end mark of a tar file, so members may be missing"
        )
    block = os.pread(descriptor, _BLOCK, position)
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        first = block.lstrip().lower()
        kind = next((kind for magic, kind in _KINDS.items() if first.startswith(magic.lower())), "")
        if kind:
            raise _DamageError(
                f"is not a tar file but {kind}"
                if position == 0
                else f"contains {_without_advice(kind)} from byte {position} on, which is left out"
            ) from None
        if position == 0 and block[257:262] != b"ustar":
            raise _DamageError("is not a tar file") from None
        if is_next:
            raise _damaged(position, end, "no archive follows its end mark") from None
        if len(block) < _BLOCK:
            raise _DamageError(f"is cut: it ends at byte {end}, inside a header") from None
        raise _damaged(position, end, str(error)) from None


def _find_next_archive(descriptor: int, position: int, end: int) -> int | None:
    """Where the blocks of zeros that begin at `position` end and another archive begins;
    None at the end of the file."""
    following = position
    while chunk := os.pread(descriptor, _MAX_PADDING_BYTES, following):
        if rest := chunk.lstrip(b"\0"):
            found = following + len(chunk) - len(rest)
            return found - (found - position) % _BLOCK
        following += len(chunk)
    if end - position < 2 * _BLOCK:
        raise _DamageError(f"is cut: it ends at byte {end}, inside its end mark")
    if position and end - position > _MAX_PADDING_BYTES:
        raise _DamageError(
            f"is damaged: all of its {end - position} bytes from byte {position} on are zero, as an unfinished "
            "download leaves them"
        )
    return None


def _without_advice(kind: str) -> str:
    what = kind.partition(":")[0]
    return f"a file {what}" if what.startswith("compressed") else what


def _damaged(position: int, end: int, reason: str) -> _DamageError:
    return _DamageError(f"is damaged at byte {position} of {end} ({reason}); everything after it is left out")


def _parse_attributes(content: bytes, header: int, end: int) -> dict[str, str]:
    """Records `LENGTH NAME=VALUE\\n` of a pax header."""
    attributes, position = {}, 0
    while position < len(content) and content[position]:
        length, _, _ = content[position : position + 20].partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content) - position:
            raise _damaged(header, end, "a pax record without a length")
        record = content[position + len(length) + 1 : position + int(length)]
        name, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _damaged(header, end, "a pax record that is cut")
        attributes[name.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        position += int(length)
    return attributes


def _read_size(attributes: dict[str, str], size: int, header: int, end: int) -> int:
    text = attributes.get("size", str(size))
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _damaged(header, end, f"a member of '{text[:20]}' bytes")
    return int(text)


def _skip_sparse_map(descriptor: int, position: int) -> int:
    """Position after the blocks that continue an old GNU sparse header, whose flag is its byte 482."""
    is_continued = os.pread(descriptor, 1, position - _BLOCK + 482) == b"\1"
    while is_continued:
        is_continued = os.pread(descriptor, 1, position + 504) == b"\1"
        position += _BLOCK
    return position


def _refuse(name: str, kind: bytes, is_sparse: bool) -> str:
    """Why a member is refused; empty if it is accepted."""
    if name.startswith("/"):
        return "has an absolute name"
    if ".." in name.split("/"):
        return "leaves its folder by '..'"
    if kind in _LINKS:
        return f"is {_LINKS[kind]}"
    if kind in _DEVICES:
        return f"is {_DEVICES[kind]}"
    if is_sparse:
        return "is sparse: its bytes are not stored as they are"
    if kind not in _REGULAR:
        return f"is of the unknown kind {kind!r}"
    if "\0" in name or not name or _printable(name) != name:
        return "has a name that is not UTF-8 text"
    return ""


def _printable(name: str) -> str:
    return name.replace("\0", "?").encode("utf-8", "replace").decode()


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
