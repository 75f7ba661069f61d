"""TIFF files by their first directory (TIFF 6.0): the orientation, and the file without its metadata."""

import struct

from fsl_dist.data.formats.orientation import BYTE_ORDERS, find_orientation

# Tags that determine the pixels: sizes, samples, compression, offsets, colours. PIL refuses a file at the first tag
# that it cannot read, even an irrelevant one.
_PIXEL_TAGS = frozenset(
    (254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 333, 334, 336,
     338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532, 50674)
)  # fmt: skip
_XMP, _BYTES = 700, (1, 7)


def strip_tiff(encoded: bytes) -> tuple[bytes, int] | None:
    """(a TIFF file with only the first page's pixels, the orientation of that page, 1 to 8); None for other files.

    The pixels stay at their offsets; a directory with the tags that determine them is appended. The result is None for
    BigTIFF, and for a truncated directory.
    """
    order = BYTE_ORDERS.get(encoded[:4])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", encoded, 4)
        (count,) = struct.unpack_from(order + "H", encoded, first)
    except struct.error:
        return None
    entries = [encoded[start : start + 12] for start in range(first + 2, first + 2 + 12 * count, 12)]
    if not entries or len(entries[-1]) < 12:
        return None
    kept, xmp = [], b""
    for entry in entries:
        tag, kind, number, place = struct.unpack(order + "HHII", entry)
        if tag in _PIXEL_TAGS:
            kept.append(entry)
        elif tag == _XMP and kind in _BYTES:
            xmp = encoded[place : place + number]
    start = len(encoded) + len(encoded) % 2
    header = encoded[:4] + struct.pack(order + "I", start)
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    bare = b"".join((header, encoded[8:], bytes(start - len(encoded)), directory))
    return bare, find_orientation(encoded, xmp)
