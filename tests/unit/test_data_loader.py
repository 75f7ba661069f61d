"""Settings, augmentation, the torchvision decoder, sources and the loader (DALI: tests/integration/test_data_dali.py)."""

import io
import threading
import time

import numpy as np
import pytest
import torch
from dataset_files import encode
from PIL import Image

from fsl_dist.data.augmentation.parameters import draw_augment
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.crops import crop_offset, resized_extents
from fsl_dist.data.decode import make_decoder
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.data.loader import FeatureSource, Loader, Request, open_source
from fsl_dist.data.pixels import open_upright
from fsl_dist.errors import ConfigError, DataError, RequestError


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"image_size": 300}, "data.image_size=300 is larger than data.resize_size=256"),
        ({"image_size": 0}, "data.image_size=0 must be at least 1"),
        ({"threads": 0}, "data.threads=0 must be at least 1"),
        ({"prefetch": 0}, "data.prefetch=0 must be at least 1"),
        ({"channels": 2}, "data.channels=2 must be 1 or 3"),
        ({"mean": (0.5,)}, "data.mean has 1 numbers; data.channels=3 needs 3 numbers"),
        ({"channels": 1, "std": (1.0, 1.0)}, "data.std has 2 numbers; data.channels=1 needs 1 number"),
        ({"std": (1.0, 0.0, 1.0)}, r"data\.std\[1\]=0\.0 must be above 0"),
        ({"mean": (float("nan"),) * 3}, r"data\.mean\[0\]=nan must be a finite number"),
        ({"contrast": 1.5}, "data.contrast=1.5 must be at least 0 and at most 1"),
        ({"crop_scale": (0.0, 1.0)}, r"data.crop_scale\[0\]=0.0 must be above 0 and at most 1"),
        ({"crop_scale": (0.5, 1.5)}, r"data.crop_scale\[1\]=1.5 must be above 0 and at most 1"),
        ({"crop_scale": (1.0, 0.5)}, r"data.crop_scale=\[1.0, 0.5\] must be two numbers, the smaller first"),
        ({"crop_scale": (0.5,)}, r"data.crop_scale=\[0.5\] must be two numbers"),
        ({"crop_ratio": (0.0, 1.0)}, r"data.crop_ratio\[0\]=0.0 must be above 0"),
        ({"crop_ratio": (2.0, 1.0)}, r"data.crop_ratio=\[2.0, 1.0\] must be two numbers, the smaller first"),
        ({"rotation": 181.0}, "data.rotation=181.0 must be at least 0 and at most 180"),
        (
            {"randaugment": 2, "trivialaugment": True},
            "randaugment=2 and data.trivialaugment=true exclude each other",
        ),
        (
            {"randaugment_magnitude": 10.5},
            "data.randaugment_magnitude=10.5 must be at least 0 and at most 10",
        ),
        ({"erasing": 1.5}, "data.erasing=1.5 must be at least 0 and at most 1"),
        (
            {"features": "f.npy", "rotation": 5.0, "erasing": 0.5},
            "data.features='f.npy' are not augmented; unset data.rotation",
        ),
        ({"features": "f.npy", "crop_scale": (0.5, 1.0)}, "unset data.crop_scale"),
        ({"holdout_fraction": 1.0}, "data.holdout_fraction=1.0 must be at least 0 and below 1"),
        ({"max_read_gap_bytes": -1}, "data.max_read_gap_bytes=-1 must be at least 0"),
    ],
)
def test_settings_are_checked(settings, text):
    with pytest.raises(ConfigError, match=text):
        DataConfig(**settings)


def test_augmentation_belongs_to_the_sample():
    config = DataConfig(brightness=0.2, contrast=0.3, saturation=0.4)
    ids = np.array([7, 3, 1000, 3])
    drawn = draw_augment(config, 5, 2, ids)
    for position, sample_id in enumerate(ids):
        alone = draw_augment(config, 5, 2, np.array([sample_id]))
        for name in ("crop_y", "crop_x", "flip", "brightness", "contrast", "saturation"):
            assert getattr(drawn, name)[position] == getattr(alone, name)[0]
    assert not np.array_equal(drawn.crop_y, draw_augment(config, 5, 3, ids).crop_y)
    assert not np.array_equal(drawn.crop_y, draw_augment(config, 6, 2, ids).crop_y)


def test_augmentation_spreads_over_its_range_and_parts_are_independent():
    ids = np.arange(4000)
    full = draw_augment(DataConfig(brightness=0.2, contrast=0.3, saturation=0.0), 0, 0, ids)
    for values, low, high in ((full.crop_x, 0, 1), (full.brightness, 0.8, 1.2), (full.contrast, 0.7, 1.3)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    assert full.flip.mean() == pytest.approx(0.5, abs=0.03)
    assert np.all(full.saturation == 1)
    part = draw_augment(DataConfig(random_crop=False, flip=False, contrast=0.3), 0, 0, ids)
    assert np.all(part.crop_y == 0.5)
    assert not part.flip.any()
    assert np.array_equal(part.contrast, full.contrast)
    assert abs(np.corrcoef(full.crop_x, full.crop_y)[0, 1]) < 0.05


def test_decoding_crops_mirrors_and_normalises_by_hand():
    """No scaling: the expected tensor is a slice of the image, in float64."""
    config = DataConfig(decoder="torchvision", image_size=20, resize_size=24, resize="exact")
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3))
    augment = draw_augment(config, 1, 0, np.arange(6))
    assert augment.flip.any()
    assert not augment.flip.all()
    found = make_decoder(config).decode([encode(image) for image in images], augment)
    assert (found.dtype, found.shape) == (torch.float32, (6, 3, 20, 20))
    assert found.is_contiguous(memory_format=torch.channels_last)
    for position, image in enumerate(images):
        top, left = (int(np.floor(4 * place[position] + 0.5)) for place in (augment.crop_y, augment.crop_x))
        cut = image[top : top + 20, left : left + 20]
        cut = cut[:, ::-1] if augment.flip[position] else cut
        expected = (cut / 255 - np.array(config.mean)) / np.array(config.std)
        assert np.abs(found[position].permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_colours_change_as_documented():
    """Saturation about luma, contrast about 128, then brightness; one rounding, clipped."""
    config = DataConfig(
        decoder="torchvision", image_size=16, resize_size=16, mean=(0.0,) * 3, std=(1.0,) * 3,
        brightness=0.5, contrast=0.5, saturation=0.5, flip=False,
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))
    augment = draw_augment(config, 1, 0, np.arange(4))
    found = make_decoder(config).decode([encode(image) for image in images], augment)
    for position, image in enumerate(images):
        luma = image @ np.array([0.299, 0.587, 0.114])
        pixels = luma[..., None] + augment.saturation[position] * (image - luma[..., None])
        pixels = augment.brightness[position] * (128 + augment.contrast[position] * (pixels - 128))
        expected = np.clip(pixels, 0, 255)
        assert np.abs(found[position].permute(1, 2, 0).numpy() * 255 - expected).max() < 0.501


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (300, 400, (30, 40)),
        (400, 300, (40, 30)),
        (10, 10, (30, 30)),
        (30, 45, (30, 45)),
        (299, 400, (30, 40)),
    ],
)
def test_the_shorter_side_is_resized(height, width, expected):
    assert resized_extents(height, width, DataConfig(image_size=20, resize_size=30)) == expected
    exact = DataConfig(image_size=20, resize_size=30, resize="exact")
    assert resized_extents(height, width, exact) == (30, 30)


def test_crops_reach_both_ends():
    assert [crop_offset(np.float32(place), 30, 20) for place in (0, 0.5, 0.999999, 1)] == [0, 5, 10, 10]
    assert crop_offset(np.float32(0.5), 31, 20) == 6


def test_images_are_decoded_upright_with_sixteen_bits_and_palettes():
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:, :15] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    image = open_upright(encode(pixels, "JPEG", exif=turned, quality=95))
    assert image.size == (20, 30)
    assert np.asarray(image)[:10].mean() > 250 > 5 > np.asarray(image)[20:].mean()

    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)).save(buffer, "PNG")
    assert np.asarray(open_upright(buffer.getvalue(), 1)).tolist() == [[0, 1, 255]]

    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(buffer, "PNG", transparency=b"\x00\x80")
    assert np.array_equal(np.asarray(open_upright(buffer.getvalue())), pixels)


def test_an_image_that_does_not_decode_is_named():
    decoder = make_decoder(DataConfig(decoder="torchvision", image_size=8, resize_size=8))
    with pytest.raises(DataError, match="image 1 of the batch cannot be decoded: its format is unknown"):
        decoder.decode([encode(np.zeros((9, 9, 3))), b"nothing"], None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    draw = np.random.default_rng(0)
    for name in "abc":
        (root / "src" / name).mkdir(parents=True)
        for number in range(10):
            (root / "src" / name / f"{number}.png").write_bytes(encode(draw.integers(0, 256, (20, 26, 3))))
    pack(root / "src", root / "out", PackOptions())
    return root / "out"


@pytest.fixture(scope="module")
def source(dataset):
    config = DataConfig(dataset=str(dataset), decoder="torchvision", image_size=16, resize_size=18)
    with_files = open_source(config, seed=3)
    yield with_files
    with_files.close()


def test_an_image_source_gives_each_sample_its_own_pixels(source):
    assert source.sample_shape == (3, 16, 16)
    ids = np.array([4, 29, 4, 0])
    for epoch in (None, 0):
        together = source.fetch(ids, epoch)
        for position, sample_id in enumerate(ids):
            assert torch.equal(together[position], source.fetch(np.array([sample_id]), epoch)[0])
    assert not torch.equal(source.fetch(ids, 0), source.fetch(ids, 1))


def test_a_feature_source_gives_rows(dataset, tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    np.save(tmp_path / "f.npy", rows)
    source = open_source(DataConfig(dataset=str(dataset), features=str(tmp_path / "f.npy")), seed=0)
    ids = np.array([3, 29, 3])
    assert source.sample_shape == (5,)
    assert np.array_equal(source.fetch(ids, None).numpy(), rows[ids])
    assert torch.equal(source.fetch(ids, None), source.fetch(ids, 4))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (np.zeros((29, 5), np.float32), "has 29 rows; data set '.*' has 30 samples"),
        (np.zeros((30, 5)), r"must be float32 \[num_samples, dim\]; it is float64 \[30, 5\]"),
        (np.zeros(30, np.float32), r"it is float32 \[30\]"),
        (np.array([{}] * 30), "cannot be read as a .npy array"),
    ],
)
def test_features_that_do_not_fit_are_refused(dataset, tmp_path, rows, text):
    np.save(tmp_path / "f.npy", rows, allow_pickle=True)
    with pytest.raises(RequestError, match=text):
        FeatureSource(Catalogue.open(dataset), tmp_path / "f.npy")


def test_a_source_needs_a_data_set(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.dataset is empty"):
        open_source(DataConfig(), seed=0)
    with pytest.raises(RequestError, match="no such folder"):
        open_source(DataConfig(dataset=str(tmp_path / "no")), seed=0)


class SlowSource:
    """Counts what it does; `fail_at` breaks one read or one decode."""

    sample_shape = (1,)
    reads_at_once = 1

    def __init__(self, fail_at=None, delay_s=0.0):
        self.catalogue = None
        self.log = []
        self.fail_at = fail_at
        self.delay_s = delay_s

    def _do(self, what, ids):
        self.log.append((what, int(ids[0])))
        time.sleep(self.delay_s)
        if self.fail_at == (what, int(ids[0])):
            raise DataError(f"{what} {ids[0]} broke")

    def read(self, ids):
        self._do("read", ids)
        return ids

    def prepare(self, raw, ids, epoch):
        self._do("decode", ids)
        return torch.from_numpy(raw).float()[:, None]

    def close(self):
        pass


def requests(num):
    for number in range(num):
        yield Request(np.array([number, number + 100]), epoch=number, tag=f"t{number}")


def live_threads():
    return {
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("fsl-dist-read", "fsl-dist-dec"))
    }


def test_the_loader_keeps_order_and_tags():
    loader = Loader(SlowSource(), requests(7), prefetch=3)
    seen = [(request.tag, request.epoch, batch[:, 0].tolist()) for request, batch in loader]
    assert seen == [(f"t{n}", n, [n, n + 100]) for n in range(7)]
    assert not live_threads()


def test_the_loader_mixes_where_a_request_says_how():
    doubled = Request(np.array([3, 4]), mix=lambda tensor: 2 * tensor)
    found = [batch[:, 0].tolist() for _, batch in Loader(SlowSource(), [doubled, Request(np.array([5]))])]
    assert found == [[6, 8], [5]]


def test_the_loader_works_ahead_but_not_further_than_told():
    source = SlowSource()
    drawn = []

    def counted():
        for request in requests(20):
            drawn.append(request.tag)
            yield request

    with Loader(source, counted(), prefetch=2) as loader:
        batches = iter(loader)
        for number in range(3):
            next(batches)
            deadline = time.monotonic() + 5
            while len(source.log) < 2 * (number + 3) and time.monotonic() < deadline:
                time.sleep(0.005)
            assert len(drawn) == number + 3  # this one and two ahead
            assert len(source.log) == 2 * (number + 3)


def test_reading_and_decoding_overlap_with_the_step():
    """Each decode but the last meets the read of the next batch, and each step the decode of the next: nobody would come alone."""
    source = SlowSource(delay_s=0.03)
    last, meetings, steps = 7, threading.Barrier(2), threading.Barrier(2)
    do = source._do

    def meet(what, ids):
        number = int(ids[0])
        if (what == "decode" and number < last) or (what == "read" and number > 0):
            meetings.wait(30)
        if what == "decode" and number > 0:
            steps.wait(30)
        do(what, ids)

    source._do = meet
    loader = Loader(source, requests(last + 1), prefetch=2)
    for request, _ in loader:
        if request.epoch < last:
            steps.wait(30)
    assert source.log.count(("decode", last)) == 1
    assert loader.wait_s > 0.05, "the first batch is read and decoded while nobody has anything to do"


def test_leaving_early_ends_the_threads():
    source = SlowSource(delay_s=0.01)
    for request, _ in Loader(source, requests(1000), prefetch=4):
        if request.tag == "t2":
            break
    deadline = time.monotonic() + 5
    while live_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not live_threads()
    assert len(source.log) < 20
    with Loader(source, requests(1000), prefetch=4) as loader:
        next(iter(loader))
    assert not live_threads()


@pytest.mark.parametrize("place", [("read", 3), ("decode", 3)])
def test_an_error_is_raised_at_its_batch(place):
    seen = []

    def consume():
        for request, _ in Loader(SlowSource(fail_at=place), requests(8), prefetch=4):
            seen.append(request.tag)

    with pytest.raises(DataError, match=f"{place[0]} 3 broke"):
        consume()
    assert seen == ["t0", "t1", "t2"]
    assert not live_threads()


def test_an_error_of_the_sampler_is_raised_too():
    def broken():
        yield from requests(2)
        raise RequestError("no such class")

    with pytest.raises(RequestError, match="no such class"):
        list(Loader(SlowSource(), broken(), prefetch=1))
    assert not live_threads()
