"""Both decoders show the pixels that each format's definition gives, or name the file that they refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.config import DataConfig
from fsl_dist.data.decode import make_decoder
from fsl_dist.data.pixels import open_upright, read_plain
from fsl_dist.errors import UndecodableError
from tests.helpers.pictures import files, table
from tests.helpers.pictures.files import before_pixels, chunk, exif, insert, segment, xmp
from tests.helpers.pictures.table import turned
from tests.helpers.pictures.values import COLOURS, is_inside, luma

pytestmark = pytest.mark.integration
pytest.importorskip("nvidia.dali", reason="DALI has no wheel for this machine")

TABLE = table.all_pictures()
DECODERS = [(name, channels) for name in ("dali", "torchvision") for channels in (1, 3)]


def open_decoder(name, channels):
    """Gives pixels of 48 × 48 pictures as they are, as parts of 1."""
    config = DataConfig(
        decoder=name,
        image_size=48,
        resize_size=48,
        resize="exact",
        channels=channels,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    return make_decoder(config, max_batch=256)


@pytest.fixture(scope="module", params=DECODERS, ids=lambda param: f"{param[0]}-{param[1]}")
def decoder(request):
    made = open_decoder(*request.param)
    yield made, request.param[1]
    made.close()


def decode(decoder, encoded):
    """float64 [n, 48, 48, C], 0 … 255."""
    return 255 * decoder.decode(encoded, None).double().numpy().transpose(0, 2, 3, 1)


def test_every_format_shows_its_pixels(decoder):
    decoder, channels = decoder
    shown = {name: one for name, one in TABLE.items() if one.shown is not None}
    far = {}
    for (name, one), found in zip(
        shown.items(), decode(decoder, [one.data for one in shown.values()]), strict=True
    ):
        grey = luma(one.shown)[..., None]
        colours = one.shown if one.shown.ndim == 3 else one.shown[..., None].repeat(3, 2)
        off = np.abs(found - (grey if channels == 1 else colours))[is_inside(one.margin)].max()
        if off > 2:
            far[name] = off
    assert far == {}


def test_every_orientation_is_upright(decoder):
    decoder, channels = decoder
    encoded = [
        turned(container, *blocks, orientation)
        for container in ("JPEG", "PNG", "WEBP")
        for orientation in range(1, 9)
        for blocks in (
            (exif(orientation, "<"), b""),
            (exif(orientation, ">", 4), b""),
            (b"", xmp(orientation)),
        )
    ]
    expected = COLOURS if channels == 3 else luma(COLOURS)[..., None]
    assert np.abs(decode(decoder, encoded) - expected).max() <= 2


def test_what_is_refused_is_named_by_its_position(decoder):
    decoder, _ = decoder
    good = TABLE["JPEG baseline 4:4:4"].data
    for name, one in TABLE.items():
        if one.shown is None:
            with pytest.raises(UndecodableError) as refused:
                decoder.decode([good, good, one.data, good], None)
            assert refused.value.position == 2, name
            assert one.refusal.lower() in refused.value.reason.lower()
            assert "\n" not in refused.value.reason


@settings(max_examples=25)
@given(data=st.data())
def test_changed_bytes_decode_alike_or_not_at_all(data):
    """Bits turned anywhere in front of the pixels: both decoders give the same, or both refuse."""
    name = data.draw(
        st.sampled_from(["JPEG 4:2:0", "JPEG progressive", "JPEG CMYK, Adobe", "PNG palette 4", "PNG RGBA 8"])
    )
    parts = (
        [segment(0xE1, b"Exif\0\0" + exif(6)), files.adobe(1)]
        if name.startswith("JPEG")
        else [chunk(b"gAMA", bytes(4)), chunk(b"eXIf", exif(6))]
    )
    plain = TABLE[name].data
    whole = insert(plain, *parts) if name.startswith("JPEG") else before_pixels(plain, *parts)
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(2, len(whole) - len(plain) + 40))] ^= 1 << data.draw(st.integers(0, 7))
    found = []
    for decoder in FUZZED:
        try:
            found.append(decode(decoder, [bytes(changed)])[0])
        except UndecodableError:
            found.append(None)
    assert (found[0] is None) == (found[1] is None)
    if found[0] is not None:
        assert np.abs(found[0] - found[1]).max() <= 2


FUZZED = [open_decoder("dali", 3), open_decoder("torchvision", 3)]


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_grey_of_a_colour_jpeg_is_its_stored_luma(sampling):
    """Of noise, whose colours leave 0 … 255 when they are decoded: both decoders leave chroma out."""
    noise = files.as_image(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    photo = files.save(noise, "JPEG", quality=80, subsampling=sampling)
    assert read_plain(photo) is not None
    dali, torchvision = (decode(open_decoder(name, 1), [photo]) for name in ("dali", "torchvision"))
    assert np.abs(dali - torchvision).max() <= 2
    assert np.abs(torchvision[0, ..., 0] - np.asarray(open_upright(photo, 1))).max() < 0.01


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("a\nb"), SyntaxError("broken"), KeyError(3), OSError(5, "x")]
)
@pytest.mark.parametrize("name", ["dali", "torchvision"])
def test_any_error_of_one_image_names_it(name, error, monkeypatch):
    """Whatever PIL and its codecs raise, no memory included, for one image of a batch."""
    bad = TABLE["TIFF RGB 8, big endian"].data
    module = f"fsl_dist.data.decode_{name}.open_upright"

    def failing(encoded, channels=3):
        if bytes(encoded) == bad:
            raise error
        return open_upright(encoded, channels)

    decoder = open_decoder(name, 3)
    good = TABLE["TIFF RGB 8, little endian"].data
    expected = decode(decoder, [good])
    monkeypatch.setattr(module, failing)
    with pytest.raises(UndecodableError) as refused:
        decoder.decode([good, bad], None)
    assert refused.value.position == 1
    assert refused.value.reason
    assert "\n" not in refused.value.reason
    assert np.array_equal(decode(decoder, [good]), expected)


def test_long_thin_pictures_are_not_enlarged_as_a_whole():
    """1 × 60,000 pixels with a shorter side of 256 would be 15 million pixels wide."""
    ramp = np.linspace(0, 255, 60_000).astype(np.uint8)[:, None]
    for pixels in (ramp, ramp.T):
        data = files.save(files.as_image(pixels), "PNG")
        found = []
        for name in ("dali", "torchvision"):
            config = DataConfig(
                decoder=name, image_size=224, resize_size=256, mean=(0.0,) * 3, std=(1.0,) * 3
            )
            found.append(255 * make_decoder(config, max_batch=2).decode([data], None))
        assert (found[0] - found[1]).abs().max() <= 2
        assert 125 <= found[0].mean() <= 130
