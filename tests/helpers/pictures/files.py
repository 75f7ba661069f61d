"""Writers of image files that no library here writes: JPEG segments, PNG chunks, TIFF and BMP of any pixel layout."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def save(image, kind, **options):
    """PIL's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# JPEG


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def insert(jpeg, *segments):
    """`jpeg` with segments behind its first marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def without(jpeg, *markers):
    """`jpeg` without the segments of these markers (before its first scan)."""
    pieces, position = [jpeg[:2]], 2
    while jpeg[position + 1] != 0xDA:
        stop = position + 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if jpeg[position + 1] not in markers:
            pieces.append(jpeg[position:stop])
        position = stop
    return b"".join([*pieces, jpeg[position:]])


def adobe(transform):
    return segment(0xEE, struct.pack(">5sHHHB", b"Adobe", 100, 0, 0, transform))


def with_frame(jpeg, change):
    """`jpeg` with its frame header (marker and body, as a bytearray) changed in place by `change`."""
    data = bytearray(jpeg)
    position = 2
    while data[position + 1] not in (0xC0, 0xC1, 0xC2):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    stop = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    frame = data[position:stop]
    change(frame)
    data[position:stop] = frame
    return bytes(data)


def renamed(jpeg, names):
    """`jpeg` with these identifiers of its components, in the frame and in its only scan."""

    def change(frame):
        for number, name in enumerate(names):
            frame[10 + 3 * number] = name

    data = bytearray(with_frame(jpeg, change))
    scan = data.index(b"\xff\xda")
    for number, name in enumerate(names):
        data[scan + 5 + 2 * number] = name
    return bytes(data)


def lossless_jpeg(pixels, precision=8):
    """SOF3 with predictor 1 (ITU-T T.81 Annex H) of uint [h, w] or [h, w, 3]; categories 0 … 16 have codes of 5 bits."""
    planes = pixels.reshape(*pixels.shape[:2], -1).astype(int)
    height, width, count = planes.shape
    bits = []
    for y in range(height):
        for x in range(width):
            for plane in range(count):
                near = (
                    planes[y, x - 1, plane] if x else planes[y - 1, 0, plane] if y else 1 << (precision - 1)
                )
                step = int(planes[y, x, plane]) - int(near)
                size = abs(step).bit_length()
                bits.append(f"{size:05b}")
                if size:
                    bits.append(f"{step if step > 0 else step + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    components = b"".join(bytes([number + 1, 0x11, 0]) for number in range(count))
    selectors = b"".join(bytes([number + 1, 0]) for number in range(count))
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xC3, struct.pack(">BHHB", precision, height, width, count) + components),
            segment(0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
            segment(0xDA, bytes([count]) + selectors + bytes([1, 0, 0])),
            scan,
            b"\xff\xd9",
        )
    )


# PNG


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, width, height, depth, colour, *between, interlaced=False, after=b""):
    """A PNG file of `rows` (bytes with their filter bytes), with chunks `between` the header and the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(between) + pixels + after + chunk(b"IEND")


def png_of(samples, depth, colour, *between, **options):
    """A PNG file of samples, uint [h, w, n] below 2 ** depth."""
    return png(_rows(samples, depth), samples.shape[1], samples.shape[0], depth, colour, *between, **options)


def interlaced_png(samples, depth, colour):
    """Adam7."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = b"".join(_rows(samples[top::down, left::right], depth) for top, left, down, right in passes)
    return png(rows, samples.shape[1], samples.shape[0], depth, colour, interlaced=True)


def _rows(samples, depth):
    return b"".join(b"\0" + packed(row, depth, ">") for row in samples)


def packed(samples, depth, order):
    """Bytes of one row of samples: whole bytes in this order, or bits from the left."""
    flat = np.asarray(samples).reshape(-1)
    if depth >= 8 and depth != 12:
        kind = flat.dtype.kind if flat.dtype.kind in "fi" else "u"
        return flat.astype(np.dtype(f"{order}{kind}{depth // 8}")).tobytes()
    text = "".join(f"{int(sample):0{depth}b}" for sample in flat)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def before_pixels(data, *chunks):
    """A PNG file with chunks in front of its pixels."""
    start = data.index(b"IDAT") - 4
    return data[:start] + b"".join(chunks) + data[start:]


# TIFF

_SIZES = {3: "H", 4: "I", 1: "B"}


def tiff(
    samples, depth, photometric, *, order="<", kind=1, extra=(), planar=False, tile=0, tags=(), more=b""
):
    """A TIFF file of samples [h, w, n], uncompressed.

    kind: SampleFormat (1 unsigned, 2 signed, 3 float). extra: ExtraSamples. tile: side of its tiles, 0 for one strip.
    tags: more entries (tag, type, values). more: bytes behind the file.
    """
    height, width, count = samples.shape
    planes = [samples[..., n : n + 1] for n in range(count)] if planar else [samples]
    if tile:
        parts = [
            plane[top : top + tile, left : left + tile]
            for plane in planes
            for top in range(0, height, tile)
            for left in range(0, width, tile)
        ]
    else:
        parts = planes
    blocks = [b"".join(packed(row, depth, order) for row in part) for part in parts]
    starts = np.cumsum([8, *[len(block) for block in blocks]]).tolist()
    sizes = [len(block) for block in blocks]
    entries = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [depth] * count), 259: (3, [1]), 262: (3, [photometric]),
        277: (3, [count]), 284: (3, [2 if planar else 1]), 339: (3, [kind] * count),
    }  # fmt: skip
    if extra:
        entries[338] = (3, list(extra))
    if tile:
        entries |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, starts[:-1]), 325: (4, sizes)}
    else:
        entries |= {278: (4, [height]), 273: (4, starts[:-1]), 279: (4, sizes)}
    entries |= {tag: (kind_of, values) for tag, kind_of, values in tags}
    return _tiff_file(b"".join(blocks), entries, order) + more


def _tiff_file(pixels, entries, order):
    pixels += b"\0" * (len(pixels) % 2)
    first = 8 + len(pixels)
    behind = first + 6 + 12 * len(entries)
    directory, values_behind = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{_SIZES[kind]}", *values)
        if len(data) > 4:
            place = struct.pack(order + "I", behind + len(values_behind))
            values_behind += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", first) + pixels + directory + b"\0\0\0\0" + values_behind


# BMP


def bmp(rows, width, height, bits, *, compression=0, masks=b"", palette=b""):
    """A BMP file; `rows` are its pixels as stored, from the bottom up unless `height` is negative."""
    start = 14 + 40 + len(masks) + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(rows), 2835, 2835, len(palette) // 4, 0
    )
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + header + masks + palette + rows


def exif(orientation, order=">", kind=3, count=1, tag=0x0112):
    """A TIFF block with one entry."""
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I", 8: "h2x", 9: "i", 11: "f"}[kind], orientation)
    mark = b"MM\0*" if order == ">" else b"II*\0"
    return mark + struct.pack(order + "IHHHI", 8, 1, tag, kind, count) + value + b"\0\0\0\0"


def xmp(orientation, is_attribute=True):
    inner = (
        f" tiff:Orientation='{orientation}'/>".replace("'", '"')
        if is_attribute
        else f"><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
    )
    return (
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        f"<rdf:Description rdf:about='' xmlns:tiff='http://ns.adobe.com/tiff/1.0/'{inner}</rdf:RDF></x:xmpmeta>"
    ).encode()


def exif_segment(block):
    return segment(0xE1, b"Exif\0\0" + block)


def xmp_segment(text):
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text)


def as_image(pixels):
    return Image.fromarray(np.ascontiguousarray(pixels))
