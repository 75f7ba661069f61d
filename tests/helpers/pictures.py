"""One picture in every file format and variant: the table of docs/data_format.md as bytes.

The picture is 3 × 3 blocks of 16 × 16 pixels, whole blocks of every JPEG sampling, so that lossy formats keep its colours. It
differs from itself in each of the eight orientations. What a file shows follows from its definition, not from a decoder.
"""

import base64
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.helpers.picture_bytes import (
    adobe,
    as_image,
    before_pixels,
    bmp,
    chunk,
    exif_segment,
    insert,
    interlaced_png,
    lossless_jpeg,
    png_of,
    renamed,
    save,
    segment,
    tiff,
    with_frame,
    without,
    xmp_segment,
)  # fmt: skip

SIDE = 48


@dataclass(frozen=True)
class Picture:
    data: bytes
    shown: np.ndarray | None
    """uint8 [48, 48] or [48, 48, 3]; None: it must be refused"""
    refusal: str = ""
    """what the refusal says"""
    margin: int = 0
    """pixels along the blocks' edges that are not defined: chroma of half the resolution is blended there"""


def blocks(values):
    """[48, 48, …] of nine values."""
    return np.asarray(values).reshape(3, 3, *np.shape(values)[1:]).repeat(16, 0).repeat(16, 1)


COLOURS = blocks(
    [(200, 40, 30), (30, 180, 60), (40, 50, 210), (220, 200, 40), (128, 128, 128), (30, 170, 190), (180, 60, 200),
     (20, 20, 20), (235, 235, 235)]
).astype(np.uint8)  # fmt: skip
GREYS = blocks([0, 37, 80, 255, 128, 10, 200, 160, 99]).astype(np.uint8)
ALPHA = blocks([0, 255, 128, 1, 255, 0, 77, 255, 200]).astype(np.uint8)
NUMBERS = blocks([0, 3, 1, 2, 3, 0, 2, 1, 1])
"""0 … 3: a palette's, or 2 bits"""
PALETTE = np.array([(200, 40, 30), (30, 180, 60), (40, 50, 210), (250, 240, 20)], dtype=np.uint8)
BITS = blocks([0, 1, 1, 0, 0, 1, 1, 0, 1])
FOURS = blocks([0, 15, 7, 3, 9, 12, 1, 5, 14])
DEEP = GREYS.astype(np.uint16) * 256 + 37
"""16 bits, whose upper 8 are GREYS"""
DEEP_COLOURS = COLOURS.astype(np.uint16) * 256 + 91


def luma(shown):
    """Grey of what is shown, ITU-R BT.601, float64 [48, 48]."""
    return shown @ np.array([0.299, 0.587, 0.114]) if shown.ndim == 3 else shown.astype(np.float64)


def ycbcr(rgb):
    """JFIF's full-range YCbCr of uint8 [..., 3], rounded."""
    r, g, b = np.moveaxis(rgb.astype(np.float64), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=-1)
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


def jpegs():
    colour = as_image(COLOURS)
    plain = save(colour, "JPEG", quality=100, subsampling=0)
    bare = without(plain, 0xE0)
    stored_rgb = without(save(colour, "JPEG", quality=100, keep_rgb=True), 0xE0, 0xEE)
    as_ycc = save(
        as_image(ycbcr(COLOURS)), "JPEG", quality=100, keep_rgb=True
    )  # samples are YCbCr, whatever is declared
    as_ycc = renamed(without(as_ycc, 0xE0, 0xEE), (1, 2, 3))
    # Inks are stored inverted (Adobe): 255 − ink; PIL's encoder inverts what it is given.
    inks = np.concatenate([255 - COLOURS, np.zeros_like(ALPHA)[..., None]], axis=2)
    cmyk = save(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    black = np.concatenate([np.full_like(COLOURS, 0), 255 - GREYS[..., None]], axis=2)
    cmyk_black = save(Image.fromarray(black, "CMYK"), "JPEG", quality=100)
    ycck_planes = np.concatenate([255 - ycbcr(255 - COLOURS), np.zeros_like(ALPHA)[..., None]], axis=2)
    ycck = save(Image.fromarray(ycck_planes, "CMYK"), "JPEG", quality=100)
    second = save(as_image(255 - COLOURS), "JPEG")
    yield "baseline 4:4:4", plain, COLOURS
    yield "4:2:2", save(colour, "JPEG", quality=100, subsampling=1), COLOURS, "", 2
    yield "4:2:0", save(colour, "JPEG", quality=100, subsampling=2), COLOURS, "", 2
    yield "progressive", save(colour, "JPEG", quality=100, subsampling=0, progressive=True), COLOURS
    yield (
        "restart intervals",
        save(colour, "JPEG", quality=100, subsampling=0, restart_marker_blocks=2),
        COLOURS,
    )
    yield "grey", save(as_image(GREYS), "JPEG", quality=100), GREYS
    yield "grey without JFIF", without(save(as_image(GREYS), "JPEG", quality=100), 0xE0), GREYS
    yield (
        "grey, sampling 2 × 2",
        with_frame(save(as_image(GREYS), "JPEG", quality=100), lambda frame: frame.__setitem__(11, 0x22)),
        GREYS,
    )
    yield "without markers, components 1 2 3", bare, COLOURS
    yield "without markers, components 0 1 2", renamed(bare, (0, 1, 2)), COLOURS
    yield "without markers, components R G B", stored_rgb, COLOURS
    yield "Adobe transform 0", insert(renamed(stored_rgb, (1, 2, 3)), adobe(0)), COLOURS
    yield "Adobe transform 1", insert(bare, adobe(1)), COLOURS
    yield "JFIF and Adobe transform 0", plain[:20] + adobe(0) + plain[20:], COLOURS
    yield (
        "YCbCr samples, JFIF behind a comment",
        insert(as_ycc, segment(0xFE, b"made by hand"), segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")),
        COLOURS,
    )
    yield "CMYK, Adobe", cmyk, COLOURS
    yield "CMYK without a marker", without(cmyk, 0xEE), COLOURS
    yield "CMYK, black only", cmyk_black, GREYS
    yield "CMYK, black only, without a marker", without(cmyk_black, 0xEE), GREYS
    yield "YCCK", insert(without(ycck, 0xEE), adobe(2)), COLOURS
    yield (
        "comment and colour profile",
        insert(plain, segment(0xFE, b"no comment"), segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff" * 200)),
        COLOURS,
    )
    yield (
        "broken Photoshop segment",
        insert(plain, segment(0xED, b"Photoshop 3.0\08BIM\x03\xed\xff\xff")),
        COLOURS,
    )
    yield "broken MPO segment", insert(plain, segment(0xE2, b"MPF\0II*\0\xff\xff\xff\x7f")), COLOURS
    yield (
        "fill bytes and rubbish between segments",
        plain[:20] + b"rubbish\0" + b"\xff\xff\xff" + plain[20:],
        COLOURS,
    )
    yield "trailing rubbish", plain + b"rubbish" * 9, COLOURS
    yield "two pictures (MPO)", plain + second, COLOURS
    yield "thumbnail", insert(plain, segment(0xE1, second)), COLOURS
    for name, data in ARITHMETIC.items():
        yield f"arithmetic codes, {name}", base64.b85decode(data), COLOURS
    yield "lossless, grey", lossless_jpeg(GREYS), GREYS
    yield "lossless, RGB", lossless_jpeg(COLOURS), COLOURS
    yield "lossless, 12 bits", lossless_jpeg(GREYS.astype(int) * 16, 12), None, "lossless JPEG of 12 bits"
    yield (
        "12 bits",
        with_frame(plain, lambda frame: frame.__setitem__(4, 12)),
        None,
        "JPEG of 12 bits a sample",
    )
    hierarchical = plain.replace(b"\xff\xc0", b"\xff\xc5", 1)
    yield "hierarchical", hierarchical, None, "hierarchical JPEG of 8 bits"
    yield (
        "arithmetic lossless",
        lossless_jpeg(GREYS).replace(b"\xff\xc3", b"\xff\xcb", 1),
        None,
        "arithmetic codes of 8",
    )
    yield "JPEG-LS", lossless_jpeg(GREYS).replace(b"\xff\xc3", b"\xff\xf7", 1), None, "JPEG-LS of 8 bits"
    yield (
        "two components",
        lossless_jpeg(COLOURS[..., :2]).replace(b"\xff\xc3", b"\xff\xc0", 1),
        None,
        "2 components",
    )
    yield "cut", plain[:-40], None, "truncated"
    yield "without its end", plain[:-2], None, "truncated"


def pngs():
    colour, grey = COLOURS, GREYS[..., None]
    palette = chunk(b"PLTE", PALETTE.tobytes())
    plain = png_of(colour, 8, 2)
    with_alpha = np.concatenate([colour, ALPHA[..., None]], axis=2)
    numbers, shown = NUMBERS[..., None], PALETTE[NUMBERS]
    yield "grey 1", png_of(BITS[..., None], 1, 0), (BITS * 255).astype(np.uint8)
    yield "grey 2", png_of(numbers, 2, 0), (NUMBERS * 85).astype(np.uint8)
    yield "grey 4", png_of(FOURS[..., None], 4, 0), (FOURS * 17).astype(np.uint8)
    yield "grey 8", png_of(grey, 8, 0), GREYS
    yield "grey 16", png_of(DEEP[..., None], 16, 0), GREYS
    yield "grey 16 that holds 8 bits", png_of(grey, 16, 0), GREYS
    yield "RGB 8", plain, colour
    yield "RGB 16", png_of(DEEP_COLOURS, 16, 2), colour
    for depth in (2, 4, 8):
        yield f"palette {depth}", png_of(numbers, depth, 3, palette), shown
    yield "palette 1", png_of(BITS[..., None], 1, 3, chunk(b"PLTE", PALETTE[:2].tobytes())), PALETTE[BITS]
    yield "palette with transparency", png_of(numbers, 8, 3, palette, chunk(b"tRNS", b"\0\x80\xff\1")), shown
    yield "grey with alpha 8", png_of(np.stack([GREYS, ALPHA], 2), 8, 4), GREYS
    yield "grey with alpha 16", png_of(np.stack([DEEP, ALPHA.astype(np.uint16) * 257], 2), 16, 4), GREYS
    yield "RGBA 8", png_of(with_alpha, 8, 6), colour
    yield "RGBA 16", png_of(with_alpha.astype(np.uint16) * 256 + 91, 16, 6), colour
    yield "grey with a transparent colour", png_of(grey, 8, 0, chunk(b"tRNS", b"\0\x80")), GREYS
    yield "RGB with a transparent colour", png_of(colour, 8, 2, chunk(b"tRNS", b"\0\xc8\0\x28\0\x1e")), colour
    yield "interlaced", interlaced_png(colour, 8, 2), colour
    yield "interlaced grey 1", interlaced_png(BITS[..., None], 1, 0), (BITS * 255).astype(np.uint8)
    profile = b"sRGB\0\0" + zlib.compress(b"\xff" * 300)
    for name, one in {
        "gAMA 45455": chunk(b"gAMA", struct.pack(">I", 45455)),
        "gAMA 100000": chunk(b"gAMA", struct.pack(">I", 100000)),
        "gAMA 0": chunk(b"gAMA", bytes(4)),
        "sRGB": chunk(b"sRGB", b"\0"),
        "cHRM": chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        "iCCP, broken": chunk(b"iCCP", profile),
        "sBIT": chunk(b"sBIT", b"\5\6\5"),
        "bKGD": chunk(b"bKGD", bytes(6)),
        "cICP": chunk(b"cICP", b"\x09\x10\0\1"),
        "pHYs, tEXt and tIME": chunk(b"pHYs", bytes(9)) + chunk(b"tEXt", b"a\0b") + chunk(b"tIME", bytes(7)),
        "text that grows without bound": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 9)),
        "broken texts": chunk(b"zTXt", b"a\0\0rubbish") + chunk(b"iTXt", b"a") + chunk(b"tEXt", b""),
        "wrong checksum of a text": chunk(b"tEXt", b"a\0b")[:-1] + b"!",
        "animation": chunk(b"acTL", struct.pack(">II", 1, 0)),
    }.items():
        yield name, before_pixels(plain, one), colour
        yield f"{name}, grey", before_pixels(png_of(grey, 8, 0), one), GREYS
    frame = struct.pack(">5IHHBB", 1, SIDE, SIDE, 0, 0, 1, 10, 0, 0)
    other = chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes((3 * SIDE + 1) * SIDE)))
    yield (
        "animated",
        before_pixels(
            png_of(colour, 8, 2, after=chunk(b"fcTL", frame) + other),
            chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", struct.pack(">I", 0) + frame[4:]),
        ),
        colour,
    )
    yield "trailing rubbish", plain + b"rubbish" * 9, colour
    yield "without its end", plain[:-12], colour
    yield (
        "text cut behind the pixels",
        png_of(colour, 8, 2, after=chunk(b"tEXt", b"a\0" + b"b" * 99))[:-60],
        colour,
    )
    yield "cut", plain[: len(plain) * 3 // 4], None, "truncated"


def tiffs():
    grey, rgb, deep = GREYS[..., None], COLOURS, DEEP[..., None]
    colour = as_image(rgb)
    for order, name in (("<", "little endian"), (">", "big endian")):
        yield f"grey 8, {name}", tiff(grey, 8, 1, order=order), GREYS
        yield f"grey 16, {name}", tiff(deep, 16, 1, order=order), GREYS
        yield f"RGB 8, {name}", tiff(rgb, 8, 2, order=order), rgb
        yield f"RGB 16, {name}", tiff(DEEP_COLOURS, 16, 2, order=order), rgb
        yield (
            f"signed 16 from 0, {name}",
            tiff(deep.astype(np.int16) >> 1 & 0x7FFF, 16, 1, order=order, kind=2),
            GREYS // 2,
        )
        low = deep.astype(np.int32) - 1024
        yield (
            f"signed 16, {name}",
            tiff(low.astype(np.int16), 16, 1, order=order, kind=2),
            None,
            "int16 pixels from ",
        )
        yield (
            f"signed 32, {name}",
            tiff(low, 32, 1, order=order, kind=2),
            None,
            "int32 pixels from -987 to 64293",
        )
        float32 = (grey / 255).astype(np.float32)
        yield (
            f"float, {name}",
            tiff(float32, 32, 1, order=order, kind=3),
            None,
            "float32 pixels from 0 to 1 do",
        )
    yield "grey 1", tiff(BITS[..., None], 1, 1), (BITS * 255).astype(np.uint8)
    yield "grey 2", tiff(NUMBERS[..., None], 2, 1), (NUMBERS * 85).astype(np.uint8)
    yield "grey 4", tiff(FOURS[..., None], 4, 1), (FOURS * 17).astype(np.uint8)
    yield "grey 12", tiff((deep >> 4).astype(np.uint16), 12, 1), GREYS
    yield "white is zero, 1 bit", tiff(1 - BITS[..., None], 1, 0), (BITS * 255).astype(np.uint8)
    yield "white is zero, 8 bits", tiff(255 - grey, 8, 0), GREYS
    yield "white is zero, 16 bits", tiff(65535 - deep, 16, 0), GREYS
    yield "planar", tiff(rgb, 8, 2, planar=True), rgb
    yield "planar, 16 bits", tiff(DEEP_COLOURS, 16, 2, planar=True), None, "PlanarConfiguration 2"
    yield "tiled", tiff(rgb, 8, 2, tile=16), rgb
    yield "tiled, planar", tiff(rgb, 8, 2, tile=16, planar=True), rgb
    yield (
        "planar with alpha",
        tiff(np.concatenate([rgb, ALPHA[..., None]], 2), 8, 2, extra=(2,), planar=True),
        rgb,
    )
    yield "CMYK, 16 bits", tiff(np.concatenate([65535 - DEEP_COLOURS, deep * 0], 2), 16, 5), rgb
    yield "RGBA, 16 bits", tiff(np.concatenate([DEEP_COLOURS, deep], 2), 16, 2, extra=(2,)), rgb
    yield (
        "grey with alpha, 16 bits",
        tiff(np.concatenate([deep, deep], 2), 16, 1, extra=(2,)),
        None,
        "BitsPerSample (16, 16)",
    )
    reversed_bits = np.packbits(
        np.unpackbits(np.packbits(BITS.astype(np.uint8), axis=1), axis=1, bitorder="little"), axis=1
    )
    yield (
        "bits from the right",
        tiff(reversed_bits[..., None], 8, 1, tags=[(256, 4, [48]), (258, 3, [1]), (266, 3, [2])]),
        (BITS * 255).astype(np.uint8),
    )
    yield "tiled, grey 16", tiff(deep, 16, 1, tile=16), GREYS
    palette = [int(value) * 257 for plane in np.pad(PALETTE, ((0, 252), (0, 0))).T for value in plane]
    yield "palette", tiff(NUMBERS[..., None], 8, 3, tags=[(320, 3, palette)]), PALETTE[NUMBERS]
    opaque = np.maximum(ALPHA, 64)
    straight = np.concatenate([rgb, ALPHA[..., None]], axis=2)
    yield "RGBA", tiff(straight, 8, 2, extra=(2,)), rgb
    yield "RGBX", tiff(straight, 8, 2, extra=(0,)), rgb
    multiplied = np.rint(rgb * (opaque[..., None] / 255.0)).astype(np.uint8)
    undone = np.clip(multiplied * 255.0 / opaque[..., None], 0, 255).astype(np.uint8)
    yield (
        "RGBA, multiplied",
        tiff(np.concatenate([multiplied, opaque[..., None]], 2), 8, 2, extra=(1,)),
        undone,
    )
    yield "grey with alpha", tiff(np.stack([GREYS, ALPHA], 2), 8, 1, extra=(2,)), GREYS
    multiplied = np.rint(GREYS * (opaque / 255.0)).astype(np.uint8)
    undone = np.clip(multiplied * 255.0 / opaque, 0, 255).astype(np.uint8)
    yield "grey with alpha, multiplied", tiff(np.stack([multiplied, opaque], 2), 8, 1, extra=(1,)), undone
    yield "CMYK", tiff(np.concatenate([255 - rgb, np.zeros_like(grey)], 2), 8, 5), rgb
    yield "YCbCr", tiff(ycbcr(rgb), 8, 6, tags=[(530, 3, [1, 1])]), rgb
    yield (
        "YCbCr of halved colours",
        tiff(ycbcr(rgb), 8, 6, tags=[(530, 3, [2, 2])]),
        None,
        "YCbCrSubSampling (2, 2)",
    )
    lab = blocks(
        [
            (0, 0, 0),
            (128, 0, 0),
            (255, 0, 0),
            (54, 0, 0),
            (200, 0, 0),
            (90, 0, 0),
            (30, 0, 0),
            (70, 0, 0),
            (160, 0, 0),
        ]
    )
    yield "CIELAB, neutral", tiff(lab.astype(np.uint8), 8, 8), _grey_of_lightness(lab[..., 0])
    pages = save(colour, "TIFF", save_all=True, append_images=[as_image(255 - rgb)])
    yield "pages", pages, rgb
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield compression, save(colour, "TIFF", compression=compression), rgb
        yield f"{compression}, grey 16", save(Image.fromarray(DEEP), "TIFF", compression=compression), GREYS
        yield (
            f"{compression}, float",
            save(Image.fromarray(GREYS.astype(np.float32)), "TIFF", compression=compression),
            None,
            "float32 pixels from 0 to 255 do",
        )
    yield "JPEG", save(colour, "TIFF", compression="jpeg", quality=100), rgb
    yield "BigTIFF", save(colour, "TIFF", big_tiff=True), rgb
    yield "signed 8 from 0", tiff((grey >> 1).astype(np.int8), 8, 1, kind=2), GREYS >> 1
    yield "signed 8", tiff(grey.view(np.int8), 8, 1, kind=2), None, "int8 pixels from -128 to 99"
    yield "unsigned 32, of 16 bits", tiff(deep.astype(np.uint32), 32, 1), GREYS
    yield (
        "unsigned 32",
        tiff(deep.astype(np.uint32) << 16, 32, 1),
        None,
        "uint32 pixels from 2.42483e+06 to 4.28",
    )
    broken = np.where(BITS[..., None] == 1, np.nan, 0.5).astype(np.float32)
    yield (
        "float with NaN",
        tiff(broken, 32, 1, kind=3),
        None,
        "of its 2304 float32 pixels are NaN or infinite",
    )
    yield "float 64", tiff((grey / 255.0), 64, 1, kind=3), None, "BitsPerSample (64,), SampleFormat (3,)"
    yield "unsigned 64", tiff(deep.astype(np.uint64), 64, 1), None, "BitsPerSample (64,)"
    yield (
        "float 16",
        tiff((grey / 255).astype(np.float16), 16, 1, kind=3),
        None,
        "BitsPerSample (16,), SampleFormat (3,)",
    )
    yield "RGB float", tiff((rgb / 255).astype(np.float32), 32, 2, kind=3), None, "SampleFormat (3, 3, 3)"
    yield "RGB signed", tiff(rgb.view(np.int8), 8, 2, kind=2), None, "SampleFormat (2, 2, 2)"
    yield (
        "directory that leads nowhere",
        tiff(rgb, 8, 2, tags=[(0x8769, 4, [0x7FFFFFF0]), (0x8825, 4, [3])]),
        rgb,
    )
    yield "trailing rubbish", tiff(rgb, 8, 2, more=b"rubbish" * 9), rgb
    yield "cut", save(colour, "TIFF", compression="raw")[:4000], None, ""


def _grey_of_lightness(stored):
    """sRGB grey of CIELAB's L*, stored as 0 … 255 (a* = b* = 0)."""
    lightness = stored / 2.55
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    value = np.where(luminance <= 0.0031308, 12.92 * luminance, 1.055 * luminance ** (1 / 2.4) - 0.055)
    return np.rint(255 * np.clip(value, 0, 1)).astype(np.uint8)


def bmps():
    rgb = COLOURS
    bgr = rgb[::-1, :, ::-1]
    palette = np.pad(PALETTE[:, ::-1], ((0, 0), (0, 1))).tobytes()
    numbers, shown = NUMBERS[::-1].astype(np.uint8), PALETTE[NUMBERS]
    four = np.concatenate([bgr, ALPHA[::-1, :, None]], axis=2)
    yield "24 bits", bmp(bgr.tobytes(), SIDE, SIDE, 24), rgb
    yield "24 bits, top down", bmp(rgb[..., ::-1].tobytes(), SIDE, -SIDE, 24), rgb
    yield "32 bits", bmp(four.tobytes(), SIDE, SIDE, 32), rgb
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    yield "32 bits with masks", bmp(four.tobytes(), SIDE, SIDE, 32, compression=3, masks=masks[:12]), rgb
    r, g, b = np.moveaxis(rgb[::-1].astype(np.uint16) >> 3, 2, 0)
    five = (rgb >> 3).astype(float) * 255 / 31
    yield (
        "16 bits, 555",
        bmp((r << 10 | g << 5 | b).astype("<u2").tobytes(), SIDE, SIDE, 16),
        np.rint(five).astype(np.uint8),
    )
    six = np.stack([five[..., 0], (rgb[..., 1] >> 2).astype(float) * 255 / 63, five[..., 2]], axis=2)
    pixels = (r << 11 | (rgb[::-1, :, 1].astype(np.uint16) >> 2) << 5 | b).astype("<u2").tobytes()
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    yield (
        "16 bits, 565",
        bmp(pixels, SIDE, SIDE, 16, compression=3, masks=masks),
        np.rint(six).astype(np.uint8),
    )
    yield "8 bits", bmp(numbers.tobytes(), SIDE, SIDE, 8, palette=palette), shown
    fours = (numbers[:, ::2] << 4 | numbers[:, 1::2]).tobytes()
    yield "4 bits", bmp(fours, SIDE, SIDE, 4, palette=palette), shown
    bits = np.packbits(np.pad(BITS[::-1].astype(np.uint8), ((0, 0), (0, 16))), axis=1).tobytes()
    yield "1 bit", bmp(bits, SIDE, SIDE, 1, palette=palette[:8]), PALETTE[BITS]
    runs = b"".join(b"".join(bytes([16, row[x]]) for x in (0, 16, 32)) + b"\0\0" for row in numbers) + b"\0\1"
    yield "run lengths", bmp(runs, SIDE, SIDE, 8, compression=1, palette=palette), shown
    yield "cut", bmp(bgr.tobytes(), SIDE, SIDE, 24)[:4000], None, ""


def others():
    colour, grey = as_image(COLOURS), as_image(GREYS)
    rgba = as_image(np.concatenate([COLOURS, np.maximum(ALPHA, 1)[..., None]], axis=2))
    inverse = as_image(255 - COLOURS)
    indexed = Image.fromarray(NUMBERS.astype(np.uint8), "P")
    indexed.putpalette(PALETTE.tobytes())
    shown = PALETTE[NUMBERS]
    yield "GIF", save(indexed, "GIF"), shown
    yield "GIF, transparent", save(indexed, "GIF", transparency=1), shown
    yield "GIF, animated", save(indexed, "GIF", save_all=True, append_images=[inverse.convert("P")]), shown
    yield "GIF, cut", save(indexed, "GIF")[:120], None, ""
    yield "WebP, lossless", save(colour, "WEBP", lossless=True), COLOURS
    yield "WebP, lossless with alpha", save(rgba, "WEBP", lossless=True, exact=True), COLOURS
    yield (
        "WebP, animated",
        save(colour, "WEBP", lossless=True, save_all=True, append_images=[inverse]),
        COLOURS,
    )
    yield "WebP, grey", save(grey, "WEBP", lossless=True), GREYS
    yield "WebP, cut", save(colour, "WEBP", lossless=True)[:60], None, ""
    yield "AVIF", save(colour, "AVIF", quality=100, subsampling="4:4:4"), COLOURS
    yield (
        "AVIF, animated",
        save(colour, "AVIF", quality=100, subsampling="4:4:4", save_all=True, append_images=[inverse]),
        COLOURS,
    )
    yield "JPEG 2000", save(colour, "JPEG2000"), COLOURS
    yield "JPEG 2000, grey", save(grey, "JPEG2000"), GREYS
    yield "JPEG 2000, grey 16", save(Image.fromarray(DEEP), "JPEG2000"), GREYS
    yield "JPEG 2000, codestream", save(colour, "JPEG2000", no_jp2=True), COLOURS
    yield "JPEG 2000, with alpha", save(rgba, "JPEG2000"), COLOURS
    head = f"{SIDE} {SIDE}\n"
    yield "PPM", f"P6\n{head}255\n".encode() + COLOURS.tobytes(), COLOURS
    yield "PPM, text", f"P3\n{head}255\n".encode() + " ".join(map(str, COLOURS.ravel())).encode(), COLOURS
    yield "PPM, 16 bits", f"P6\n{head}65535\n".encode() + DEEP_COLOURS.astype(">u2").tobytes(), COLOURS
    yield "PGM", f"P5\n# a comment\n{head}255\n".encode() + GREYS.tobytes(), GREYS
    yield "PGM, 16 bits", f"P5\n{head}65535\n".encode() + DEEP.astype(">u2").tobytes(), GREYS
    yield "PGM, 16 bits, all dark", f"P5\n{head}65535\n".encode() + GREYS.astype(">u2").tobytes(), GREYS * 0
    yield "PGM, 12 bits", f"P5\n{head}4095\n".encode() + (DEEP >> 4).astype(">u2").tobytes(), GREYS
    yield (
        "PGM, 4 bits",
        f"P5\n{head}15\n".encode() + FOURS.astype(np.uint8).tobytes(),
        (FOURS * 17).astype(np.uint8),
    )
    yield (
        "PBM",
        f"P4\n{head}".encode() + np.packbits(1 - BITS.astype(np.uint8), axis=1).tobytes(),
        (BITS * 255).astype(np.uint8),
    )
    yield (
        "PFM",
        f"Pf\n{head}-1.0\n".encode() + (GREYS / 255).astype("<f4").tobytes(),
        None,
        "float32 pixels from 0 to 1 do",
    )
    for name, data, word in (
        ("JPEG XL", b"\xff\x0a" + bytes(200), "JPEG XL"), ("HEIF", b"\0\0\0\x18ftypheic" + bytes(200), "HEIF"),
        ("DICOM", bytes(128) + b"DICM" + bytes(99), "DICOM"), ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        ("no image", b"words", "format is not known"),
    ):  # fmt: skip
        yield name, data, None, word


ARITHMETIC = {
    "sequential": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI4"
        "0RaI40RaI40sq?oLjeH+0RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RjKX"
        "01*fPFaR(E0TBQK5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zf#0Pe$yYeXdk$7QHv1Co&!^Y7<<&jp1b`AU?R;N0~Pu3?l1"
        "t2sJ)m~oSPp~K+f>}(Mg%Q<b57)cNJIr?<b&j?M<G-2uvo1Z9wUSLd0@(rZ7t+@Z$"
    ),
    "progressive": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI4"
        "0RaI40RaI40sq?oLjeH+0RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RaI40RjKY"
        "01*fPFaR(E0TBQK5di}c0sqVZ1^^HN5dYc$3<CiG0uTcb000610Nsh;FF_zF{dl^Wp>8xKJh#s!YCA@|xdn2+=a_9wBM7#ZGf970"
        "sg(99@|tRVgXpean3O|5ghIA8nE1!hL7BfBnc;{Te8N^Ra7TFm%m4%s1^?Or2mt{A0R;lE|I7dc5e5I+00;pC0RcY&u>Z^e1Q7-Q"
        "+5iXv0s#R(0kHqf00a;P|Jncu0RaF8KLW7-%m4%s1^?Or2mt{A0Y4$I|Jncy0|5X600RI301!*Y|I7dc5e5I+00;pC0RcY{u>Z^e"
        "1Q7-Q+5iXv0s#R(5U~Hu00a;P|Jncu0RaF3KM=70*#"
    ),
}
"""base 85 of COLOURS at quality 100, 4:4:4, as libjpeg-turbo 2.1.5 encodes it with `arith_code`"""


def all_pictures():
    """Name → `Picture`, of all formats."""
    found = {}
    for family, rows in (("JPEG", jpegs), ("PNG", pngs), ("TIFF", tiffs), ("BMP", bmps), ("", others)):
        for name, *rest in rows():
            found[f"{family} {name}".strip()] = Picture(*rest)
    return found


def in_orientation(shown, orientation):
    """What is stored so that `orientation` shows `shown` (EXIF 2.3, tag 274): its rows and columns, exchanged or reversed."""
    stored = shown.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else shown
    rows = slice(None, None, -1 if orientation in (3, 4, 6, 7) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 7, 8) else 1)
    return np.ascontiguousarray(stored[rows, columns])


def is_inside(margin):
    """bool [48, 48]: pixels at least `margin` away from the edges of their blocks."""
    place = np.arange(SIDE) % 16
    row = (place >= margin) & (place < 16 - margin)
    return row[:, None] & row


def turned(container, block, text, orientation):
    """COLOURS stored turned, with this EXIF block and XMP text (either may be empty) in a `container`."""
    image = as_image(in_orientation(COLOURS, orientation))
    if container == "JPEG":
        parts = ([exif_segment(block)] if block else []) + ([xmp_segment(text)] if text else [])
        return insert(save(image, "JPEG", quality=100, subsampling=0), *parts)
    if container == "PNG":
        parts = ([chunk(b"eXIf", block)] if block else []) + (
            [chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)] if text else []
        )
        return before_pixels(save(image, "PNG"), *parts)
    options = ({"exif": block} if block else {}) | ({"xmp": text} if text else {})
    return save(image, container, lossless=True, **options)
