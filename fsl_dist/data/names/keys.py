"""The key of an image: its path without extension, made safe for a tar header and for WebDataset.

owl/0001.jpg        owl/0001                      unchanged
कि/photo 1.jpg      कि/photo_1~1d0f0c9e2b6a4f37   changed: a hash of the full path makes it unique
"""

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath

# A tar header has 100 bytes for the name; the longest extension, ".mask.png", needs 9 of them.
_MAX_BYTES = 91
# 64 bits: a million changed paths collide with a probability of 3e-8, and a collision is reported.
_HASH_DIGITS = 16
# No unchanged key contains it, so a changed key never equals an unchanged one.
_HASH_MARK = "~"
_HASH = re.compile(f"{_HASH_MARK}[0-9a-f]{{{_HASH_DIGITS}}}$")
# WebDataset treats everything below a first folder `__…__` as its own metadata and skips it.
_METADATA = re.compile("__[^/]*__/")


def make_key(path: str, *, with_hash: bool = False) -> str:
    """Return the key of the image at `path`. It depends only on the path;
    only paths that differ in the extension share it.

    Letters, digits and marks of every script, "_", "-" and "/" are kept; everything else becomes "_", including dots,
    because WebDataset cuts a name at its first dot. If the key changes by this, by Unicode's form NFC, by the length
    limit of a tar header or by WebDataset's reserved names (`__meta__/…`), a hash of the path is appended. A key that
    is too long keeps its end, where file names differ.

    Args:
        path: Relative to the source, without `.` and `..`; bytes that are not UTF-8 as in `os.fsdecode`.
        with_hash: Append the hash in any case, for files that differ only in the extension.
    """
    stem = _stem(path)
    key = "".join(
        character if _is_kept(character) else "_" for character in unicodedata.normalize("NFC", stem)
    )
    if key == stem and len(key.encode()) <= _MAX_BYTES and not _METADATA.match(key) and not with_hash:
        return key
    ending = _HASH_MARK + hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    key = _cut(key, _MAX_BYTES - len(ending)) + ending
    return re.sub("^_+", "_", key) if _METADATA.match(key) else key


def without_hash(key: str) -> str:
    """`key` without the hash that a change or a companion of another extension gave it."""
    return _HASH.sub("", key)


def make_earlier_key(path: str) -> str:
    """The key that data sets without `KEY_RULE` in their options were packed with: different paths may share one."""
    return _cut(re.sub(r"[^\w/\-]", "_", unicodedata.normalize("NFC", _stem(path))), _MAX_BYTES)


KEY_RULE = "hashed where changed"
"""value of `keys` in a catalogue's options if `make_key` made the keys"""


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _is_kept(character: str) -> bool:
    return character.isalnum() or character in "_-/" or unicodedata.category(character)[0] == "M"


def _cut(key: str, max_bytes: int) -> str:
    """The last `max_bytes` of `key`, without partial characters."""
    encoded = key.encode()
    return key if len(encoded) <= max_bytes else encoded[-max_bytes:].decode(errors="ignore").lstrip("/")
