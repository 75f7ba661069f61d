"""DALI against torchvision, and packed shards in other people's readers, byte for byte."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fsl_dist.data import decode
from fsl_dist.data.augmentation.parameters import draw_augment
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.decode import make_decoder
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.data.loader import Loader, Request, open_source
from fsl_dist.errors import DataError

pytestmark = pytest.mark.integration
pytest.importorskip("nvidia.dali", reason="DALI has no wheel for this machine")

TOLERANCE = 0.02
"""mean absolute difference after normalisation that photographs may show; measured 0.002 … 0.009"""


def make_photo(seed, height=150, width=200, kind="JPEG", mode="RGB", **options):
    """Smooth noise with a grain: what a photograph is to a resampling filter and a JPEG decoder."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    grainy = np.clip(smooth + draw.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grainy).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def decode_both(config, encoded, epoch):
    augment = None if epoch is None else draw_augment(config, 0, epoch, np.arange(len(encoded)))
    images = []
    for name in ("dali", "torchvision"):
        decoder = make_decoder(replace(config, decoder=name), max_batch=8)
        assert decoder.name == name
        images.append(decoder.decode(encoded, augment))
        decoder.close()
    return images


def worst_difference(config, encoded, epoch):
    """Largest over the images of the mean absolute difference."""
    dali, torchvision = decode_both(config, encoded, epoch)
    assert dali.shape == torchvision.shape == (len(encoded), config.channels, *[config.image_size] * 2)
    assert dali.dtype == torchvision.dtype == torch.float32
    for images in (dali, torchvision):
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert torchvision.std() > 0.1
    return (dali - torchvision).abs().mean(dim=(1, 2, 3)).max().item()


JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.4}
CONFIGS = {
    "rgb": DataConfig(image_size=64, resize_size=80),
    "rgb jitter": DataConfig(image_size=64, resize_size=80, **JITTER),
    "rgb exact": DataConfig(image_size=64, resize_size=80, resize="exact"),
    "rgb bicubic": DataConfig(image_size=64, resize_size=80, interpolation="bicubic"),
    "rgb enlarged, bicubic": DataConfig(image_size=200, resize_size=220, interpolation="bicubic"),
    "rgb enlarged": DataConfig(image_size=200, resize_size=220),
    "grey": DataConfig(image_size=64, resize_size=80, channels=1),
    "grey jitter": DataConfig(image_size=64, resize_size=80, channels=1, **JITTER),
    "resized crop": DataConfig(image_size=64, resize_size=80, crop_scale=(0.2, 1.0), **JITTER),
    "resized crop, bicubic": DataConfig(
        image_size=64, resize_size=80, crop_scale=(0.2, 1.0), interpolation="bicubic"
    ),
    "resized crop, enlarged": DataConfig(image_size=200, resize_size=200, crop_scale=(0.1, 0.5)),
    "resized crop, centre": DataConfig(
        image_size=64, resize_size=80, crop_scale=(0.5, 0.5), random_crop=False, channels=1
    ),
    "rotated": DataConfig(image_size=64, resize_size=80, rotation=30.0, vertical_flip=True, **JITTER),
    "randaugment": DataConfig(image_size=64, resize_size=80, randaugment=2, erasing=0.5),
    "trivialaugment grey": DataConfig(image_size=64, resize_size=80, trivialaugment=True, channels=1),
    "rotated grey": DataConfig(image_size=64, resize_size=80, rotation=180.0, channels=1, **JITTER),
}


@pytest.mark.parametrize("epoch", [None, 0])
@pytest.mark.parametrize("name", CONFIGS)
def test_dali_and_torchvision_agree(name, epoch):
    # odd sizes, portrait and landscape; 19 images against batches of 8, the last of 3
    encoded = [make_photo(n, 150 + 13 * (n % 5), 211 - 11 * (n % 7), quality=90) for n in range(19)]
    assert worst_difference(CONFIGS[name], encoded, epoch) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "1", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "L", {"quality": 95}),
        ("WEBP", "RGB", {"quality": 90}),
        ("GIF", "P", {}),
        ("TIFF", "RGB", {}),
        ("BMP", "RGB", {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_decodes_alike(kind, mode, options, channels):
    config = DataConfig(image_size=64, resize_size=80, channels=channels)
    assert worst_difference(config, [make_photo(1, kind=kind, mode=mode, **options)], None) < TOLERANCE


def test_turned_and_deep_images_decode_alike():
    turned = Image.Exif()
    turned[0x0112] = 8
    ramp = np.linspace(0, 65535, 90 * 120).astype(np.uint16).reshape(90, 120)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    encoded = [
        make_photo(2, exif=turned, quality=95),
        buffer.getvalue(),
        make_photo(3, kind="PNG", exif=turned),
    ]
    for epoch in (None, 0):
        assert worst_difference(DataConfig(image_size=64, resize_size=80), encoded, epoch) < TOLERANCE


@pytest.mark.parametrize("options", [{"subsampling": n} for n in (0, 1, 2)] + [{"progressive": True}])
def test_a_decoded_region_is_that_of_the_whole_image(options):
    """Compared with the same image as bare pixels, of which a region is a slice."""
    config = DataConfig(decoder="dali", image_size=48, resize_size=160)
    photo = make_photo(5, 310, 400, quality=90, **options)
    augment = draw_augment(config, 0, 0, np.arange(12))
    decoder = make_decoder(config, max_batch=16)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(buffer, "PPM")  # PIL's libjpeg decodes all of it to the same bytes
    by_region, whole = (
        decoder.decode([photo] * 12, augment),
        decoder.decode([buffer.getvalue()] * 12, augment),
    )
    assert (by_region - whole).abs().max() < 0.1  # two decoders' rounding: 4 of 256 levels at most
    assert (by_region - whole).abs().mean() < 0.01


def test_results_outlive_later_runs_and_their_decoder():
    decoder = make_decoder(DataConfig(decoder="dali", image_size=32, resize_size=40), max_batch=4)
    photos = [make_photo(n) for n in range(12)]
    kept = [decoder.decode(photos[n : n + 3], None) for n in range(8)]
    expected = [images.clone() for images in kept]
    decoder.decode(photos, None)
    decoder.close()
    assert all(torch.equal(*pair) for pair in zip(kept, expected, strict=True))


def test_crops_land_on_the_same_pixel():
    """Without scaling, PNG in: both must give the very same pixels, for many sizes and places."""
    config = DataConfig(image_size=32, resize_size=40, resize="shorter", mean=(0.0,) * 3, std=(1.0,) * 3)
    draw = np.random.default_rng(0)
    encoded = []
    for number in range(60):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (40, 41 + number, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    for epoch in (None, 0):
        dali, torchvision = decode_both(config, encoded, epoch)
        assert torch.equal(dali, torchvision)


def test_a_result_survives_the_next_batch():
    decoder = make_decoder(DataConfig(decoder="dali", image_size=32, resize_size=40), max_batch=4)
    first = decoder.decode([make_photo(1)], None)
    kept = first.clone()
    decoder.decode([make_photo(2)] * 4, None)
    assert torch.equal(first, kept)


def test_a_damaged_image_is_named_and_the_decoder_goes_on():
    decoder = make_decoder(DataConfig(decoder="dali", image_size=32, resize_size=40), max_batch=4)
    good = make_photo(1)
    expected = decoder.decode([good], None)
    with pytest.raises(DataError, match="image 5 of the batch cannot be decoded: it is truncated"):
        decoder.decode([good] * 5 + [make_photo(2)[:900]], None)
    assert torch.equal(decoder.decode([good], None), expected)


def test_auto_takes_dali_and_the_log_says_so(caplog):
    decode._tell.cache_clear()  # logged once per process
    with caplog.at_level("INFO", logger="fsl_dist"):
        assert make_decoder(DataConfig(image_size=32, resize_size=40)).name == "dali"
    assert "images are decoded by DALI on cpu" in caplog.text


def test_skin_photographs_decode_alike(real_data):
    encoded = []
    with tarfile.open(real_data / "ham10000_lt.tar") as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                encoded.append(archive.extractfile(member).read())
            if len(encoded) == 24:
                break
    for config in (DataConfig(image_size=112, resize_size=128, **JITTER), DataConfig(), CONFIGS["grey"]):
        for epoch in (None, 0):
            assert worst_difference(config, encoded, epoch) < TOLERANCE


def test_characters_decode_alike_at_28_pixels(real_data):
    config = DataConfig(image_size=28, resize_size=28, channels=1, mean=(0.5,), std=(0.5,))
    encoded = []
    with tarfile.open(real_data / "omniglot.tar.gz") as archive:
        for member in archive:
            if member.name.endswith(".png"):
                encoded.append(archive.extractfile(member).read())
            if len(encoded) == 57:
                break
    assert worst_difference(config, encoded, None) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_gpu_and_cpu_agree(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    encoded = [make_photo(n, 150 + 13 * (n % 5), 211 - 11 * (n % 7), quality=90) for n in range(19)]
    augment = draw_augment(CONFIGS[name], 0, 0, np.arange(19))
    config = replace(CONFIGS[name], decoder="dali")
    on_gpu = make_decoder(config, device="cuda:0", max_batch=8).decode(encoded, augment)
    on_cpu = make_decoder(config, device="cpu", max_batch=8).decode(encoded, augment)
    assert on_gpu.device.type == "cuda"
    assert (on_gpu.cpu() - on_cpu).abs().mean() < TOLERANCE


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Photographs of three classes, two formats, packed; (data set, bytes by key, label by key)."""
    root = tmp_path_factory.mktemp("readers")
    for number in range(24):
        folder = root / "src" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"photo{number}.jpg").write_bytes(make_photo(number, quality=90 + number % 5))
    pack(root / "src", root / "out", PackOptions(fractions=(0.5, 0.25, 0.25)))
    catalogue = Catalogue.open(root / "out")
    keys = catalogue.keys(np.arange(24))
    files = {key: (root / "src" / f"{key}.jpg").read_bytes() for key in keys}
    return root / "out", files, dict(zip(keys, catalogue.labels.tolist(), strict=True))


@pytest.mark.filterwarnings("ignore")  # webdataset and what it imports warn as they like
def test_webdataset_reads_the_shards_byte_for_byte(packed):
    import webdataset

    out, files, label_of = packed
    shards = [str(path) for path in sorted((out / "shards").iterdir())]
    found = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        key = sample["__key__"]
        assert sample.keys() >= {"jpg", "cls"}
        assert int(sample["cls"]) == label_of[key]
        found[key] = sample["jpg"]
    assert found == files


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_masks_with_their_samples(tmp_path):
    import webdataset

    source = tmp_path / "src"
    source.mkdir()
    rows = ["file,class,mask"]
    for number in range(3):
        (source / f"{number}.jpg").write_bytes(make_photo(number))
        with Image.open(source / f"{number}.jpg") as photo:
            Image.new("L", photo.size, 50 * number).save(source / f"{number}.mask.png")
        rows.append(f"{number}.jpg,a,{number}.mask.png")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    columns = TableColumns(table=str(tmp_path / "t.csv"), mask="mask")
    pack(source, tmp_path / "out", PackOptions(columns=columns))
    shards = [str(path) for path in sorted((tmp_path / "out/shards").iterdir())]
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(shards, shardshuffle=False)}
    for number in range(3):
        assert found[str(number)]["jpg"] == (source / f"{number}.jpg").read_bytes()
        assert found[str(number)]["mask.png"] == (source / f"{number}.mask.png").read_bytes()


def test_dalis_own_reader_reads_the_shards_byte_for_byte(packed):
    import nvidia.dali.fn as fn
    from nvidia.dali import pipeline_def

    out, files, label_of = packed
    shards = [str(path) for path in sorted((out / "shards").iterdir())]

    @pipeline_def(batch_size=24, num_threads=1, device_id=None)
    def read():
        return tuple(fn.readers.webdataset(paths=shards, ext=["jpg", "cls"]))

    pipeline = read()
    pipeline.build()
    images, labels = pipeline.run()
    found = sorted((images.at(i).tobytes(), int(labels.at(i).tobytes())) for i in range(24))
    assert found == sorted((content, label_of[key]) for key, content in files.items())


def test_the_whole_path_gives_the_same_batches_with_both_decoders(packed):
    out, _, _ = packed
    batches = []
    for name in ("dali", "torchvision"):
        config = DataConfig(dataset=str(out), decoder=name, image_size=48, resize_size=56, threads=2)
        source = open_source(config, seed=1, max_batch=5)
        ids = np.random.default_rng(0).integers(0, 24, (4, 7))
        with Loader(source, [Request(row, epoch=2) for row in ids], prefetch=2) as loader:
            batches.append([batch for _, batch in loader])
        source.close()
    for dali, torchvision in zip(*batches, strict=True):
        assert (dali - torchvision).abs().mean() < TOLERANCE


def test_an_image_that_dali_refuses_has_a_stand_in(packed):
    """As `tests/unit/test_data_damage.py` has it for torchvision, here behind a JPEG's first bytes."""
    catalogue = Catalogue.open(packed[0])
    train = catalogue.select("train")
    bad, next_one = train.of_class(0)[:2].tolist()
    files = [packed[1][key] for key in catalogue.keys(np.arange(catalogue.num_samples))]
    config = DataConfig(
        dataset=str(packed[0]), decoder="dali", image_size=32, resize_size=40, max_bad_fraction=0.1
    )
    source = open_source(config, seed=0)
    ids = np.array([next_one + 1, bad])
    raw = source.read(ids)
    raw.samples[1] = memoryview(files[bad][:900])
    found = source.prepare(raw, ids, 0)
    augment = draw_augment(config, 0, 0, ids)
    expected = make_decoder(config).decode([files[next_one + 1], files[next_one]], augment)
    assert torch.equal(found, expected)
    source.close()
