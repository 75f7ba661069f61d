"""Fingerprints of images, and the search for near pairs against plain loops."""

import io

import imagehash
import numpy as np
import pytest
from dataset_files import encode
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from fsl_dist.data.fingerprints import Fingerprints, fingerprint
from fsl_dist.data.images import CheckedImage, prepare_encoded
from fsl_dist.data.ingest.near_pairs import NEAR, NEAR_BY_NAME, Bounds, find_near
from fsl_dist.data.resize import StoredSize


def cut_photographs():
    """Eight pictures of 200 × 200 pixels out of two photographs."""
    return [
        Image.fromarray(photograph).crop((left, top, left + 200, top + 200))
        for photograph in load_sample_images().images
        for left in (0, 300)
        for top in (20, 220)
    ]


def reencode(image, quality):
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=quality))).convert("RGB")


def crop_to(image, share):
    left, top = ((1 - share) / 2 * side for side in image.size)
    return image.crop((round(left), round(top), round(image.width - left), round(image.height - top)))


def fingerprint_all(images):
    return Fingerprints([fingerprint(image) for image in images], [(n, 0) for n in range(len(images))])


def compare_by_loops(prints, row, other):
    """(bits that differ, correlation of the thumbnails), in float64 from their definitions."""
    distance = sum(
        bin(a ^ b).count("1")
        for a, b in zip(prints.hashes[row].tolist(), prints.hashes[other].tolist(), strict=True)
    )
    products, squares, other_squares = 0.0, 0.0, 0.0
    for channel in range(3):
        a, b = (prints.thumbs[n][channel::3].tolist() for n in (row, other))
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        for x, y in zip(a, b, strict=True):
            products += (x - mean_a) * (y - mean_b)
            squares += (x - mean_a) ** 2
            other_squares += (y - mean_b) ** 2
    return distance, products / (squares * other_squares) ** 0.5


def found_pairs(prints, bounds, groups=None):
    return {
        (row, other): distance
        for block in find_near(prints, bounds, groups)
        for row, other, distance in zip(
            block.rows.tolist(), block.others.tolist(), block.distances.tolist(), strict=True
        )
    }


def is_near(image, variant, bounds):
    return bool(found_pairs(fingerprint_all([image, variant]), bounds))


def test_a_fingerprint_is_imagehash_and_a_thumbnail_of_the_upright_image():
    image = cut_photographs()[0].crop((0, 0, 200, 120))
    expected = np.packbits(imagehash.phash(image).hash).tobytes()
    assert fingerprint(image)[:8] == expected
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90° clockwise
    lying = encode(image.transpose(Image.Transpose.ROTATE_90), exif=turned)
    prepared = prepare_encoded(lying, "a.png", StoredSize(), has_fingerprint=True)
    assert prepared.image.fingerprint == fingerprint(image)
    assert prepare_encoded(lying, "a.png", StoredSize()).image.fingerprint == b""


def test_a_resized_image_has_the_fingerprint_of_what_is_stored():
    grey = cut_photographs()[1].convert("L")
    prepared = prepare_encoded(encode(grey), "a.png", StoredSize(shorter=64), has_fingerprint=True)
    assert prepared.image.fingerprint == fingerprint(Image.open(io.BytesIO(prepared.data)).convert("RGB"))
    assert isinstance(prepared.image, CheckedImage)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: reencode(image, 30),
        lambda image: image.resize((100, 100), Image.Resampling.BILINEAR),
        lambda image: image.resize((700, 700), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(0.7),
        lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    ],
    ids=["jpeg", "smaller", "larger", "darker", "softer"],
)
def test_the_same_picture_in_another_form_is_near(change):
    for image in cut_photographs():
        assert is_near(image, change(image), NEAR)


def test_another_crop_is_near_under_the_same_name_alone():
    images = cut_photographs()
    near = [is_near(image, crop_to(image, 0.94), NEAR) for image in images]
    by_name = [is_near(image, crop_to(image, 0.94), NEAR_BY_NAME) for image in images]
    assert sum(near) < sum(by_name)
    assert sum(by_name) >= 6


def test_other_pictures_are_not_near():
    images = cut_photographs()
    images += [ImageOps.mirror(image) for image in images]
    assert found_pairs(fingerprint_all(images), NEAR_BY_NAME) == {}


def test_colour_tells_pictures_of_one_shape_apart():
    disc = np.hypot(*(np.indices((64, 64)) - 32)) < 20
    shapes = [
        Image.fromarray((disc[..., None] * np.array(colour)).astype(np.uint8)) for colour in np.eye(3) * 200
    ]
    prints = fingerprint_all(shapes)
    assert len({tuple(row) for row in prints.hashes.tolist()}) == 1
    assert found_pairs(prints, NEAR) == {}


def test_the_search_finds_what_plain_loops_find():
    draw = np.random.default_rng(0)
    images = []
    for image in cut_photographs():
        for _ in range(34):
            side = int(draw.integers(120, 300))
            variant = reencode(
                crop_to(image, draw.uniform(0.9, 1.0)).resize((side, side)), int(draw.integers(20, 95))
            )
            images.append(variant)
    draw.shuffle(images)
    prints = fingerprint_all(images)
    assert len(prints) == 272  # more than one block of queries
    compared = {
        (row, other): compare_by_loops(prints, row, other)
        for row in range(272)
        for other in range(row)
        if np.bitwise_count(prints.hashes[row] ^ prints.hashes[other]).sum() <= 12
    }
    for bounds in (
        NEAR,
        NEAR_BY_NAME,
        Bounds(distance=0, correlation=0.0),
        Bounds(distance=12, correlation=-1.0),
    ):
        expected = {
            pair: distance
            for pair, (distance, correlation) in compared.items()
            if distance <= bounds.distance and correlation >= bounds.correlation
        }
        assert found_pairs(prints, bounds) == expected
        assert expected
    halves = [np.arange(0, 272, 2), np.arange(1, 272, 2)]
    assert found_pairs(prints, NEAR, halves) == {
        (row, other): distance
        for (row, other), distance in found_pairs(prints, NEAR).items()
        if row % 2 == other % 2
    }


def test_pairs_of_a_row_come_together_and_in_order():
    encoded = fingerprint(cut_photographs()[2])
    prints = Fingerprints([encoded] * 600, [(n, 0) for n in range(600)])
    rows = np.concatenate([block.rows for block in find_near(prints, NEAR) if not block.are_copies])
    assert len(rows) == 600 * 599 // 2
    assert np.all(np.diff(rows) >= 0)


def test_pictures_of_one_colour_are_near_their_copies_alone():
    flats = [Image.new("RGB", (20, 20), (value, value, 200)) for value in (0, 0, 10, 255)]
    faint = np.full((64, 64, 3), 128, dtype=np.uint8)
    faint[:32] += 1
    flats += [Image.fromarray(faint), Image.fromarray(faint[:, ::-1].copy())]
    encoded = [fingerprint(image) for image in flats]
    contents = [(1, 80), (1, 80), (1, 80), (4, 80), (5, 80), (6, 80)]
    prints = Fingerprints(encoded, contents)
    blocks = list(find_near(prints, Bounds(distance=64, correlation=-1.0)))
    assert found_pairs(prints, Bounds(distance=64, correlation=-1.0)) == {(1, 0): 0}
    assert [block.are_copies for block in blocks if len(block.rows)] == [True]


def test_no_image_and_one_image_have_no_pairs():
    assert found_pairs(Fingerprints([], []), NEAR) == {}
    assert found_pairs(fingerprint_all(cut_photographs()[:1]), NEAR) == {}
