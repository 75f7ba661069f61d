"""Packing at the size training uses: what is resized, how it is encoded, and that masks go with their images."""

import io
import tarfile

import numpy as np
import pytest
from dataset_files import all_bytes, write_table
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.images import JPEG_QUALITY
from fsl_dist.data.ingest import pack_pieces
from fsl_dist.data.ingest.inspection import find_damage
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.ingest.resplit import ResplitOptions, resplit
from fsl_dist.data.pixels import open_upright
from fsl_dist.data.resize import StoredSize
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError, RequestError


def draw(number, height, width, channels=3):
    """A smooth picture, so that JPEG's loss stays small."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (9 + number + c)) + np.cos(y / (7 + c)) for c in range(channels)]
    pixels = np.stack([(wave * 60 + 128) for wave in waves], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def turned_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def source(tmp_path):
    """A photograph, a turned one, a grey one, a palette, a wide PNG, and one that is small already."""
    root = tmp_path / "src"
    save(root / "a/photo.jpg", draw(0, 120, 200), quality=95, comment=b"by hand")
    save(root / "a/turned.jpg", draw(1, 120, 200), quality=95, exif=turned_exif(6))
    save(root / "a/grey.jpg", draw(2, 90, 90, 1), quality=95)
    save(root / "b/palette.gif", draw(3, 100, 140).quantize(16))
    save(root / "b/wide.png", draw(4, 50, 300), icc_profile=b"a profile", transparency=(1, 2, 3))
    save(root / "b/small.jpg", draw(5, 40, 64), quality=71)
    return root


def read_all(dataset):
    """key → (encoded image, encoded mask or None, (height, width) of the catalogue)."""
    catalogue = Catalogue.open(dataset)
    catalogue.check_fingerprint()
    assert find_damage(catalogue) == []
    ids = np.arange(catalogue.num_samples)[::-1]
    store = ShardStore(catalogue)
    try:
        images, masks = store.read(ids), store.read_masks(ids)
    finally:
        store.close()
    sizes = [tuple(size) for size in catalogue.image_sizes(ids).tolist()]
    rows = zip(catalogue.keys(ids), images, [m if m is None else bytes(m) for m in masks], sizes, strict=True)
    return {key: (bytes(image), mask, size) for key, image, mask, size in rows}


def test_larger_images_are_stored_upright_at_the_shorter_side(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions(resize_shorter=40))
    found = read_all(tmp_path / "out")
    sizes = {key: size for key, (_, _, size) in found.items()}
    assert sizes == {
        "a/photo": (40, 67),
        "a/turned": (67, 40),
        "a/grey": (40, 40),
        "b/palette": (40, 56),
        "b/wide": (40, 240),
        "b/small": (40, 64),
    }
    assert found["b/small"][0] == (source / "b/small.jpg").read_bytes()
    for key, (encoded, _, (height, width)) in found.items():
        stored = Image.open(io.BytesIO(encoded))
        assert (stored.height, stored.width) == (height, width)
        assert stored.getexif().get(0x0112, 1) == 1
        if key == "b/small":
            continue
        assert not stored.info.keys() & {"comment", "icc_profile", "transparency", "exif"}
        file = next(source.glob(f"{key}.*"))
        upright = open_upright(file.read_bytes()).resize((width, height), Image.Resampling.BILINEAR)
        upright.info.clear()
        if file.suffix == ".jpg":
            assert stored.format == "JPEG"
            buffer = io.BytesIO()
            (upright.convert("L") if key == "a/grey" else upright).save(
                buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0
            )
            assert encoded == buffer.getvalue()
        else:
            assert stored.format == "PNG"
            assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(upright))
    with tarfile.open(tmp_path / "out/shards/shard-000000.tar") as tar:
        names = {name for name in tar.getnames() if not name.endswith(".cls")}
    assert names == {
        "a/photo.jpg",
        "a/turned.jpg",
        "a/grey.jpg",
        "b/palette.png",
        "b/wide.png",
        "b/small.jpg",
    }


def test_an_exact_size_never_enlarges_a_side(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions(resize=(60, 80)))
    sizes = {key: size for key, (_, _, size) in read_all(tmp_path / "out").items()}
    assert sizes == {
        "a/photo": (60, 80),
        "a/turned": (60, 80),
        "a/grey": (60, 80),
        "b/palette": (60, 80),
        "b/wide": (50, 80),
        "b/small": (40, 64),
    }


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.integers(1, 600))
def test_no_side_grows_and_what_is_stored_stays(height, width, side):
    for rule in (StoredSize(shorter=side), StoredSize(exact=(side, 2 * side))):
        extents = rule.extents(height, width)
        if extents is None:
            assert min(height, width) <= side
        else:
            assert 1 <= extents[0] <= height
            assert 1 <= extents[1] <= width
            assert rule.extents(*extents) is None


@pytest.mark.integration
def test_one_seed_gives_the_same_bytes_and_leaves_nothing_beside(source, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_pieces, "CHUNK_SIZE", 2)
    for name, processes in (("one", 1), ("four", 4)):
        pack(source, tmp_path / name, PackOptions(resize_shorter=40, processes=processes))
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "four")
    assert all_bytes(tmp_path / "one") != {}
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert left == {"src", "one", "four"}


def test_an_append_stores_at_the_same_size(source, tmp_path):
    for name, options in (("s", PackOptions(resize_shorter=40)), ("e", PackOptions(resize=(30, 30)))):
        pack(source, tmp_path / name, options)
        save(tmp_path / "more/a/later.png", draw(7, 80, 100))
        append(tmp_path / "more", tmp_path / name, PackOptions())
        assert read_all(tmp_path / name)["a/later"][2] == {"s": (40, 50), "e": (30, 30)}[name]
        with pytest.raises(
            RequestError, match=r"resizes by the data set's own rule .*; leave resize_shorter=40 out"
        ):
            append(tmp_path / "more", tmp_path / name, PackOptions(resize_shorter=40))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"resize_shorter": 9, "resize": (4, 5)},
            "resize_shorter=9 and resize=4x5 exclude each other; leave one out",
        ),
        ({"resize_shorter": 0}, "resize_shorter=0 must be at least 1"),
        ({"resize": (0, 5)}, "resize[0]=0 must be at least 1"),
    ],
)
def test_sizes_that_are_none_are_refused(options, text):
    with pytest.raises(RequestError) as refused:
        PackOptions(**options)
    assert str(refused.value) == text


def label_map(height, width):
    """Three values, none of them between two others that touch."""
    y, x = np.mgrid[0:height, 0:width]
    return np.where(x < width // 3, 0, np.where(y < height // 2, 200, 7)).astype(np.uint8)


def masks_in(path, rows):
    return TableColumns(table=write_table(path, rows, "file,class,mask"), mask="mask")


@pytest.fixture
def masked(tmp_path):
    """(source, columns): six images, three with masks: PNG, TIFF, palette PNG of an image that EXIF turns."""
    root = tmp_path / "src"
    for number in range(6):
        exif = turned_exif(6 if number == 2 else 1)
        save(root / f"{number}.jpg", draw(number, 60, 90), quality=95, exif=exif)
    save(root / "m/0.png", Image.fromarray(label_map(60, 90)))
    save(root / "m/1.tif", Image.fromarray(label_map(60, 90).astype(np.uint16) * 300))
    palette = Image.fromarray(label_map(90, 60)).convert("P")
    save(root / "m/2.png", palette)
    masks = ["m/0.png", "m/1.tif", "m/2.png", "", "", ""]
    rows = [(f"{number}.jpg", "ab"[number % 2], mask) for number, mask in enumerate(masks)]
    return root, masks_in(tmp_path / "t.csv", rows)


def test_masks_are_stored_beside_their_images(masked, tmp_path):
    source, columns = masked
    pack(source, tmp_path / "out", PackOptions(columns=columns))
    found = read_all(tmp_path / "out")
    assert [found[str(n)][1] is None for n in range(6)] == [False] * 3 + [True] * 3
    assert found["0"][1] == (source / "m/0.png").read_bytes()
    assert found["2"][1] == (source / "m/2.png").read_bytes()
    deep = np.asarray(Image.open(io.BytesIO(found["1"][1])))
    assert np.array_equal(deep, label_map(60, 90).astype(np.uint16) * 300)
    with tarfile.open(tmp_path / "out/shards/shard-000000.tar") as tar:
        names = tar.getnames()
        assert tar.extractfile("0.mask.png").read() == found["0"][1]
    at = names.index("0.jpg")
    assert names[at : at + 3] == ["0.jpg", "0.cls", "0.mask.png"]
    assert sum(name.endswith(".mask.png") for name in names) == 3


def test_masks_are_resized_with_their_images_by_the_nearest_pixel(masked, tmp_path):
    source, columns = masked
    pack(source, tmp_path / "out", PackOptions(columns=columns, resize_shorter=20, processes=3))
    found = read_all(tmp_path / "out")
    for key, factor in (("0", 1), ("1", 300), ("2", 1)):
        _, mask, size = found[key]
        pixels = np.asarray(Image.open(io.BytesIO(mask)))
        assert pixels.shape == size == ((30, 20) if key == "2" else (20, 30))
        original = label_map(*((90, 60) if key == "2" else (60, 90))).astype(int) * factor
        # 60 × 90 to a third: the middle of three pixels
        assert np.array_equal(pixels, original[1::3, 1::3])


def test_masks_that_do_not_fit_are_bad_samples(masked, tmp_path):
    source, _ = masked
    save(source / "m/3.png", Image.fromarray(label_map(90, 60)))
    (source / "m/4.png").write_text("no image")
    rows = [(f"{n}.jpg", "a", f"m/{n}.png") for n in (0, 2, 3, 4)]
    rows += [("5.jpg", "a", "m/none.png"), ("1.jpg", "a", "../t.csv")]
    columns = masks_in(tmp_path / "bad.csv", rows)
    report = pack(source, tmp_path / "out", PackOptions(columns=columns))
    assert {bad.path: bad.reason for bad in report.bad_samples} == {
        "3.jpg": "its mask 'm/3.png' has 60 × 90 pixels, its image 90 × 60",
        "4.jpg": "its mask 'm/4.png' is not an image that decodes: its format is unknown",
        "5.jpg": "its mask 'm/none.png': no such file",
        "1.jpg": "its mask '../t.csv': leaves the source folder",
    }
    assert report.num_samples == 2


def test_a_damaged_mask_is_found(masked, tmp_path):
    source, columns = masked
    pack(source, tmp_path / "out", PackOptions(columns=columns))
    catalogue = Catalogue.open(tmp_path / "out")
    sample_id = catalogue.keys(range(6)).index("0")
    where = catalogue.locate_masks([sample_id])
    shard = tmp_path / "out/shards/shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[where.offset[0] + 40] ^= 1
    shard.write_bytes(data)
    assert [bad.path for bad in find_damage(catalogue)] == ["0"]
    store = ShardStore(catalogue)
    try:
        assert len(store.read(np.arange(6))) == 6
        with pytest.raises(
            DataError, match=r"mask of sample '0' \(id \d\) does not match its checksum; inspecting"
        ):
            store.read_masks(np.array([sample_id]))
    finally:
        store.close()


def test_an_append_brings_masks_and_a_resplit_keeps_them(masked, tmp_path):
    root, columns = masked
    first = tmp_path / "first"
    save(first / "a/one.png", draw(0, 30, 30))
    pack(first, tmp_path / "out", PackOptions())
    append(root, tmp_path / "out", PackOptions(columns=columns))
    resplit(tmp_path / "out", ResplitOptions(seed=3))
    found = read_all(tmp_path / "out")
    assert {key for key, (_, mask, _) in found.items() if mask is not None} == {"0", "1", "2"}
    assert found["0"][1] == (root / "m/0.png").read_bytes()
