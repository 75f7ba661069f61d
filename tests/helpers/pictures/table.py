"""The picture in every file format and variant: the tables of docs/reference/data_format.md as files."""

import struct
import zlib

import numpy as np
from PIL import Image

from tests.helpers.pictures.files import (
    as_image,
    before_pixels,
    bmp,
    chunk,
    exif_segment,
    insert,
    interlaced_png,
    png_of,
    save,
    xmp_segment,
)
from tests.helpers.pictures.jpegs import jpegs
from tests.helpers.pictures.tiffs import tiffs
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
    SIDE,
    Picture,
    in_orientation,
)


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
    dark = np.stack([GREYS, ALPHA.astype(np.uint16) * 257], 2)
    yield "grey with alpha 16 that holds 8 bits", png_of(dark, 16, 4), GREYS
    yield "RGB 16 that holds 8 bits", png_of(colour, 16, 2), None, "colours of 16 bits are all below 256"
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
        ("no image", b"words", "format is unknown"),
    ):  # fmt: skip
        yield name, data, None, word


def all_pictures():
    """Name → `Picture`, of all formats."""
    found = {}
    for family, rows in (("JPEG", jpegs), ("PNG", pngs), ("TIFF", tiffs), ("BMP", bmps), ("", others)):
        for name, *rest in rows():
            found[f"{family} {name}".strip()] = Picture(*rest)
    return found


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
