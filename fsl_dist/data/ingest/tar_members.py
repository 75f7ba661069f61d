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
# Names and attributes of one member; a header that claims more is damage.
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar file."""

    name: str
    offset: int
    """first byte of its content"""
    size: int
    """bytes"""


class _DamageError(Exception):
    """The rest of the archive cannot be read."""


def list_members(descriptor: int, shard: str) -> Iterator[Member | BadSample]:
    """Regular members of the open tar file `shard` (its name in reports), in order; what is refused as BadSample.

    USTAR, GNU and pax archives. Refused by name: absolute paths, `..`, links, devices, sparse and unknown kinds.
    Damage is one BadSample that ends the list. Folders are ignored. Reads headers only.
    """
    end = os.fstat(descriptor).st_size
    position = 0
    try:
        while position < end:
            info = _read_header(descriptor, position)
            if info is None:
                return
            header, position = position, position + _BLOCK
            long_name, attributes = "", dict[str, str]()
            while info.type in (
                *_EXTENDED,
                tarfile.XGLTYPE,
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
            ):
                if not 0 <= info.size <= _MAX_HEADER_BYTES:
                    raise _DamageError(f"byte {header}: a header of {info.size} bytes")
                content = os.pread(descriptor, info.size, position)
                position += _padded(info.size)
                if info.type in _EXTENDED:
                    attributes |= _parse_attributes(content, header)
                elif info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
                following = _read_header(descriptor, position)
                if following is None:
                    raise _DamageError(f"byte {position}: the archive ends inside a header")
                info, position = following, position + _BLOCK
            name = attributes.get("path") or long_name or info.name
            size = _read_size(attributes, info.size, header)
            is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(
                n.startswith("GNU.sparse") for n in attributes
            )
            if info.type == tarfile.GNUTYPE_SPARSE:
                position = _skip_sparse_map(descriptor, position)
            has_content = info.type in _REGULAR or is_sparse or info.type not in tarfile.SUPPORTED_TYPES
            offset, position = position, position + (_padded(size) if has_content else 0)
            if has_content and offset + size > end:
                raise _DamageError(f"'{name}' reaches beyond the end of the file")
            if info.type == tarfile.DIRTYPE:
                continue
            reason = _refuse(name, info.type, is_sparse)
            if reason:
                yield BadSample(f"{shard}:{_printable(name)}", reason)
            else:
                yield Member(name, offset, size)
    except _DamageError as error:
        what = f"is damaged ({_printable(str(error))}); what follows there is left out"
        yield BadSample(shard, what)


def _read_header(descriptor: int, position: int) -> tarfile.TarInfo | None:
    """The header at `position`; None at the end of the archive."""
    block = os.pread(descriptor, _BLOCK, position)
    if not block:
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # known to tarfile, not to its stubs
        return None
    except tarfile.HeaderError as error:
        if position == 0:
            raise _DamageError("not a plain tar archive; a compressed one must be unpacked first") from None
        raise _DamageError(f"byte {position}: {error}") from None
    return info


def _parse_attributes(content: bytes, header: int) -> dict[str, str]:
    """Records `LENGTH NAME=VALUE\\n` of a pax header."""
    attributes, position = {}, 0
    while position < len(content) and content[position]:
        length, _, _ = content[position : position + 20].partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content) - position:
            raise _DamageError(f"byte {header}: a pax record without a length")
        record = content[position + len(length) + 1 : position + int(length)]
        name, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise _DamageError(f"byte {header}: a pax record that is cut")
        attributes[name.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        position += int(length)
    return attributes


def _read_size(attributes: dict[str, str], size: int, header: int) -> int:
    text = attributes.get("size", str(size))
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _DamageError(f"byte {header}: a member of '{text[:20]}' bytes")
    return int(text)


def _skip_sparse_map(descriptor: int, position: int) -> int:
    """Position after the blocks that continue an old GNU sparse header, whose flag is its byte 482."""
    is_continued = os.pread(descriptor, 1, position - _BLOCK + 482) == b"\1"
    while is_continued:
        is_continued = os.pread(descriptor, 1, position + 504) == b"\1"
        position += _BLOCK
    return position


def _refuse(name: str, kind: bytes, is_sparse: bool) -> str:
    """Why a member is not taken; empty where it is."""
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
