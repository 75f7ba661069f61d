"""Which way a picture is turned: the orientation in its metadata, 1 wherever that cannot be read."""

import re
import struct

from PIL import Image

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""PIL operation that turns stored pixels upright, by EXIF orientation; 1 and all other numbers need none"""

SWAPPING = frozenset((5, 6, 7, 8))
"""orientations that exchange width and height"""

_ORIENTATION = 0x0112
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"MM*\0": ">", b"II\0*": "<"}
"""first four bytes of a TIFF block → byte order for `struct`; the last two forms are wrong, and common"""
# EXIF types of whole numbers: SHORT, LONG and their signed forms.
_WHOLE_NUMBERS = {3: "H", 4: "I", 8: "h", 9: "i"}
# XMP may call the namespace by another name than tiff, and write an attribute or an element (XMP part 1, 7.4 and
# 7.9.2.2).
_TIFF_NAME = re.compile(rb"""xmlns:([\w.-]+)\s*=\s*["']http://ns\.adobe\.com/tiff/1\.0/["']""")
_IN_XMP = rb"""\b%s:Orientation(?:\s*=\s*["']|(?:\s[^<>]*)?>)\s*([0-9]+)\s*["'<]"""


def find_orientation(exif: bytes, xmp: bytes) -> int:
    """Return the orientation, 1 to 8, from a file's EXIF and XMP blocks (either may be empty).

    EXIF takes precedence; XMP is used only if EXIF has no orientation, as in `PIL.ImageOps.exif_transpose`. Unreadable
    metadata counts as missing, so the result is 1 and nothing is raised.
    """
    found = _read_exif(exif)
    if found is None and xmp:
        name = _TIFF_NAME.search(xmp)
        match = re.search(_IN_XMP % re.escape(name[1] if name else b"tiff"), xmp)
        found = int(match[1][:4]) if match else None
    return found if found in TURNS else 1


def _read_exif(exif: bytes) -> int | None:
    """The value of the orientation tag in the first directory (the last one if repeated); 0: unusable; None: none."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = BYTE_ORDERS.get(exif[:4])
    found = None
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION:
                is_usable = number == 1 and kind in _WHOLE_NUMBERS
                found = (
                    struct.unpack_from(order + _WHOLE_NUMBERS[kind], exif, entry + 8)[0] if is_usable else 0
                )
    except struct.error:  # the block is cut: entries before the cut count
        pass
    return found


def make_exif(orientation: int) -> bytes:
    """The smallest TIFF block, 26 bytes, with this orientation in it."""
    return struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)
