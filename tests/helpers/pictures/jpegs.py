"""JPEG files: codes, samplings, colour models and what marks them."""

import base64

import numpy as np
from PIL import Image

from tests.helpers.pictures.files import (
    adobe,
    as_image,
    insert,
    lossless_jpeg,
    renamed,
    save,
    segment,
    with_frame,
    without,
)
from tests.helpers.pictures.values import ALPHA, COLOURS, GREYS, ycbcr

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
    yield "without its end", plain[:-2], COLOURS
