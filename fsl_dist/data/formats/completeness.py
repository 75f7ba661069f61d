"""Whether a JPEG or PNG file contains all of its pixels. The decoders silently fill in missing ones.

For JPEGs with Huffman codes, every scan must have all of its codes, restarts and coefficients. For PNG, critical
chunks must have the checksum that they state, a palette must be present if needed, and the pixels must inflate to
every row. A JPEG with arithmetic codes, WebP and AVIF cannot be checked: any bytes are valid codes in them.
"""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
from PIL import Image

from fsl_dist.data.formats.jpeg import JPEG_MAGIC, JpegFile, Scans, read_jpeg
from fsl_dist.data.formats.png import PNG_MAGIC, PngFile, read_png

# Codes that occur in no image, without 0xFF: if the decoder reads some of them, the pixels change.
_FILLER = bytes((77 * number + 19) % 251 for number in range(96))
# Number of zero bytes at the end of a scan that is suspicious: plain images may have them, and some cameras add them.
_MIN_ZEROS = 16
_PROGRESSIVE = 0xC2
_SHORT = "ends before its last pixel"
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def find_gap(encoded: bytes | memoryview) -> str | None:
    """Why a JPEG or PNG file that decodes is incomplete; None if it is complete, and for other formats.

    Cost: two decodings of a JPEG at an eighth of its size (at full size if progressive), or inflating a PNG.
    """
    head = bytes(encoded[:8])
    if head.startswith(JPEG_MAGIC):
        jpeg = read_jpeg(encoded)
        return None if jpeg is None else find_gap_of_jpeg(jpeg)
    png = read_png(encoded) if head == PNG_MAGIC else None
    return None if png is None else _find_gap_of_png(png)


def find_gap_of_jpeg(jpeg: JpegFile) -> str | None:
    """The same for a JPEG whose segments are read."""
    if not jpeg.has_huffman_codes or jpeg.refusal:
        return None
    scans = jpeg.read_scans()
    if not _has_all_scans(jpeg, scans) or _count_missing_restarts(jpeg, scans):
        return _SHORT
    pieces = [bytes(jpeg.content[start:stop]) for start, stop in scans.codes]
    shown = _show(jpeg, scans, pieces)
    if _show(jpeg, scans, [piece + _FILLER for piece in pieces]) != shown:
        return _SHORT
    last = pieces[-1]
    num_zeros = len(last) - len(last.rstrip(b"\0"))
    if num_zeros < _MIN_ZEROS:
        return None
    without = last[: len(last) - num_zeros + 1] + _FILLER  # the first zero may belong to a 0xFF
    is_used = _show(jpeg, scans, [*pieces[:-1], without]) != shown
    is_left = _show(jpeg, scans, [*pieces[:-1], last[: -_MIN_ZEROS // 2] + _FILLER]) == shown
    return f"has {num_zeros} zero bytes in place of its last pixels" if is_used and is_left else None


def _show(jpeg: JpegFile, scans: Scans, pieces: list[bytes]) -> bytes:
    """The pixels with these codes in the place of the file's."""
    content, position = [], 0
    for (start, stop), piece in zip(scans.codes, pieces, strict=True):
        content += [bytes(jpeg.content[position:start]), piece]
        position = stop
    content.append(b"\xff\xd9")
    whole = b"".join(content)
    kept = (*jpeg.kept[:-1], (jpeg.kept[-1][0], len(whole)))
    changed = replace(jpeg, content=memoryview(whole), kept=kept, is_bare=False)
    opened = Image.open(io.BytesIO(changed.without_metadata()), formats=("JPEG",))
    if jpeg.frame != _PROGRESSIVE and len(scans.headers) == 1 and not jpeg.is_lossless:
        opened.draft("L", (1, 1))  # an eighth of the size
    return opened.tobytes()


def _has_all_scans(jpeg: JpegFile, scans: Scans) -> bool:
    """Whether every component has every coefficient to the last bit."""
    missing = {identifier: np.full(64, 255, dtype=np.uint8) for identifier, _ in jpeg.components}
    for header in scans.headers:
        first, last, bits = header[-3:]
        if jpeg.frame != _PROGRESSIVE:
            first, last, bits = 0, 63, 0
        for identifier in header[1:-3:2]:
            if identifier in missing:
                missing[identifier][first : last + 1] = bits & 15
    return not any(bits.any() for bits in missing.values())


def _count_missing_restarts(jpeg: JpegFile, scans: Scans) -> int:
    """Restart markers that the scans lack, by the interval that is stated in front of them."""
    interval = 0
    for start, stop in jpeg.kept[:-1]:
        if jpeg.content[start + 1] == 0xDD and stop - start >= 6:
            (interval,) = struct.unpack_from(">H", jpeg.content, start + 4)
    if not interval or jpeg.is_lossless:
        return 0
    samplings = dict(jpeg.components)
    across = max(sampling >> 4 for sampling in samplings.values())
    down = max(sampling & 15 for sampling in samplings.values())
    missing = 0
    for header, restarts in zip(scans.headers, scans.restarts, strict=True):
        width, height, side = jpeg.width, jpeg.height, (8 * across, 8 * down)
        sampling = samplings.get(header[1])
        if header[0] == 1 and sampling:  # a component alone is coded block by block
            width, height = -(-width * (sampling >> 4) // across), -(-height * (sampling & 15) // down)
            side = (8, 8)
        units = -(-width // side[0]) * -(-height // side[1])
        missing += max(0, -(-units // interval) - 1 - restarts)
    return missing


def _find_gap_of_png(png: PngFile) -> str | None:
    kinds, pixels = set(), []
    for kind, body, checksum in png.chunks():
        if zlib.crc32(body, zlib.crc32(kind)) != checksum:
            return f"is damaged: its chunk {kind.decode('latin-1')} has another checksum than it states"
        kinds.add(kind)
        if kind == b"IDAT":
            pixels.append(body)
    if png.colour == 3 and b"PLTE" not in kinds:
        return "has no palette (chunk PLTE), from which its colours follow"
    passes = _ADAM7 if png.content[28] else ((0, 0, 1, 1),)
    expected = 0
    for left, top, right, down in passes:
        width, height = -(-(png.width - left) // right), -(-(png.height - top) // down)
        if width > 0 and height > 0:
            expected += height * (1 + -(-width * png.depth * _SAMPLES.get(png.colour, 1) // 8))
    stream, found = zlib.decompressobj(), 0
    try:
        for body in pixels:
            data: bytes | memoryview = body
            while data and found < expected:
                found += len(stream.decompress(data, min(expected - found, 1 << 20)))
                data = stream.unconsumed_tail
        while found < expected and (rest := stream.decompress(b"", 1 << 20)):
            found += len(rest)
    except zlib.error as error:
        return f"is damaged: its pixels do not inflate ({error})"
    return _SHORT if found < expected else None
