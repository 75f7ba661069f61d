"""Pictures and flags of a data set: which classes are shown, what is drawn where, and what is pointed out."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.inspection import describe, summarise
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.plots.dataset import (
    choose_classes,
    count_by_split,
    draw_distribution,
    draw_plots,
    draw_samples,
)

COLOURS = [(30 * c % 256, 255 - 20 * c % 256, 70 * c % 256) for c in range(14)]


@pytest.fixture(scope="module")
def tailed(tmp_path_factory):
    """14 classes of 40, 37 … 1 images, each class one colour; one wide and one tiny image."""
    root = tmp_path_factory.mktemp("plots")
    for number in range(14):
        (root / "src" / f"c{number:02}").mkdir(parents=True)
        for image in range(40 - 3 * number):
            size = {(0, 1): (300, 20), (0, 2): (20, 3)}.get((number, image), (20, 20))
            Image.new("RGB", size, COLOURS[number]).save(root / "src" / f"c{number:02}" / f"{image:02}.png")
    pack(root / "src", root / "out", PackOptions())
    return Catalogue.open(root / "out")


def test_classes_are_counted_by_split_and_sorted(tailed):
    counts = count_by_split(tailed)
    assert counts.sum(axis=0).tolist() == [40 - 3 * number for number in range(14)]
    assert counts.sum(axis=1).tolist() == [
        len(tailed.split_ids(s)) for s in ("train", "val", "test", "novel")
    ]


def test_the_sheet_shows_the_largest_the_middle_and_the_smallest():
    counts = np.array([5, 0, 9, 9, 2, 1, 7, 30, 4, 3, 8, 6, 11, 10, 12])
    parts = dict(choose_classes(counts))
    assert parts["largest classes"] == [7, 14, 12, 13]
    assert parts["middle classes"] == [3, 10, 6, 11]
    assert parts["smallest classes"] == [8, 9, 4, 5]
    assert choose_classes(np.array([3, 0, 8])) == [("all classes", [2, 0])]


def test_tiles_hold_the_images_of_their_class(tailed):
    """Rows of 122 pixels under headings of 40; the first tile starts at (6, 6 + 40 + 20)."""
    sheet = np.asarray(draw_samples(tailed))
    first_rows = [6 + 40 * (part + 1) + 122 * (4 * part) + 20 for part in range(3)]
    for top, classes in zip(first_rows, ((0, 1, 2, 3), (5, 6, 7, 8), (10, 11, 12, 13)), strict=True):
        for row, number in enumerate(classes):
            assert sheet[top + 122 * row + 48, 6 + 48].tolist() == list(COLOURS[number])
    # The last class has one image: the place of a second tile is empty.
    assert np.all(sheet[first_rows[2] + 3 * 122 + 48, 6 + 102 + 48] == 255)


def test_the_pictures_are_written_and_drawn_anew(tailed, tmp_path):
    paths = draw_plots(tailed, tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["class_distribution.png", "samples.png"]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw_plots(tailed, tmp_path / "a" / "b")] == before
    assert all(content.startswith(b"\x89PNG") for content in before)


def test_the_distribution_has_a_line_for_each_split_and_one_for_all(tailed):
    (axis,) = draw_distribution(tailed).axes
    assert axis.get_yscale() == "log"
    counts = count_by_split(tailed)
    wanted = {"all": counts.sum(axis=0), "train": counts[0], "val": counts[1], "test": counts[2]}
    assert [line.get_label() for line in axis.lines] == list(wanted)  # no class is novel
    for line, values in zip(axis.lines, wanted.values(), strict=True):
        assert line.get_xdata().tolist() == list(range(1, 15))
        found = line.get_ydata()
        assert np.isnan(found).tolist() == (values == 0).tolist()
        assert found[values > 0].tolist() == values[values > 0].tolist()
        assert line.get_marker() == "o"


def test_tail_and_sizes_are_flagged(tailed):
    summary = summarise(tailed)
    small, shorter, longer = summary.flags
    assert small.startswith("2 of 14 classes have fewer than 5 images, class 'c13' 1: an episode needs")
    assert shorter.startswith(
        "1 images have a shorter side below 1/4 of the median (20 pixels), such as 'c00/02' (20 × 3)"
    )
    assert longer.startswith(
        "1 images have a longer side above 4 times the median (20 pixels), such as 'c00/01' (300 × 20)"
    )
    assert f"look at     {small}" in describe(summary)


def test_a_damaged_image_is_a_crossed_tile(tailed, tmp_path):
    shutil.copytree(tailed.folder, tmp_path / "data")
    where = tailed.locate([int(np.flatnonzero(tailed.labels == 13)[0])])
    with open(tmp_path / "data" / tailed.shards[0].name, "r+b") as shard:
        shard.seek(int(where.offset[0]) + 60)
        shard.write(b"??")
    sheet = np.asarray(draw_samples(Catalogue.open(tmp_path / "data")))
    top = 6 + 40 * 3 + 122 * 11 + 20
    assert sheet[top + 48, 6 + 20].tolist() == [215, 215, 215]
    assert sheet[top + 20, 6 + 20].tolist() == [40, 40, 40]
