"""TIFF files: depths, sample formats, colour models and arrangements."""

import numpy as np
from PIL import Image

from tests.helpers.pictures.files import as_image, save, tiff
from tests.helpers.pictures.values import (
    ALPHA,
    BITS,
    COLOURS,
    DEEP,
    DEEP_COLOURS,
    FOURS,
    GREYS,
    NUMBERS,
    PALETTE,
    blocks,
    ycbcr,
)


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
    for name, samples, bits, white, order in (
        ("white is zero, 16 bits", 65535 - deep, 16, 0, ">"),
        ("unsigned 32", deep.astype(np.uint32), 32, 1, ">"),
        ("white is zero, 32 bits", deep.astype(np.uint32), 32, 0, "<"),
        ("white is zero, 32 bits", deep.astype(np.uint32), 32, 0, ">"),
    ):
        refusal = f"BitsPerSample ({bits},), SampleFormat (1,), PhotometricInterpretation {white}"
        yield f"{name}, not read, {order}", tiff(samples, bits, white, order=order), None, refusal
    yield "BigTIFF, big endian", b"MM\0+\0\x08" + bytes(90), None, "big-endian BigTIFF"
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
    yield "cut", save(colour, "TIFF", compression="raw")[:4000], None, "truncated"
    yield "cut before its directory", tiff(rgb, 8, 2)[:4000], None, "cut or damaged"


def _grey_of_lightness(stored):
    """sRGB grey of CIELAB's L*, stored as 0 … 255 (a* = b* = 0)."""
    lightness = stored / 2.55
    luminance = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    value = np.where(luminance <= 0.0031308, 12.92 * luminance, 1.055 * luminance ** (1 / 2.4) - 0.055)
    return np.rint(255 * np.clip(value, 0, 1)).astype(np.uint8)
