"""Folders that are poor to train on: one class, classes of one image, classes without a validation image."""

import logging
from pathlib import Path

import pytest

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.errors import RequestError
from fsl_dist.training.launch import check_run, train_run
from fsl_dist.training.splits import split_run
from tests.helpers.commands import GREY_16_PX
from tests.helpers.dataset_files import write_images

METHODS = {
    "deep_knn": ["method.kind=deep_knn"],
    "mined": ["method.kind=deep_knn", "mining.source=dataset"],
    "cross_entropy": ["method.kind=cross_entropy"],
    "batch_hard": ["method.kind=batch_hard"],
    "few_shot_nca": ["method.kind=few_shot_nca"],
    "pcn": ["method.kind=pcn", "episode.n_way=2", "episode.small_classes=replace"],
    "scatter": ["method.kind=scatter", "episode.n_way=2", "episode.small_classes=replace"],
    "chai": ["method.kind=chai"],
}


def pack_folder(folder: Path, counts: dict[str, int], **options: object) -> Path:
    """A packed folder of noise with so many images of each class; packed by the default split unless `options` say otherwise."""
    write_images(folder / "images", counts)
    pack(folder / "images", folder / "packed", PackOptions(**options))
    return folder / "packed"


def settings(dataset: Path, run: Path, *more: str, epochs: int = 1) -> RunConfig:
    return load_config(
        None,
        [
            *GREY_16_PX,
            "data.decoder=torchvision",
            f"data.dataset={dataset}",
            f"run.dir={run}",
            "backbone.name=conv4",
            "backbone.width=4",
            "training.batch_size=24",
            f"training.epochs={epochs}",
            *more,
        ],
    )


@pytest.fixture(scope="module")
def one_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_folder(tmp_path_factory.mktemp("one"), {"cats": 12})


@pytest.fixture(scope="module")
def lone_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class of 20 images, one of 10, and six of one image, which packing leaves to train whole."""
    counts = {"ants": 20, "bees": 10} | {f"lone {number}": 1 for number in range(6)}
    return pack_folder(tmp_path_factory.mktemp("lone"), counts, split="stratified", fractions=(0.6, 0.2, 0.2))


@pytest.mark.parametrize("method", METHODS)
def test_one_class_is_refused_whatever_the_method(one_class: Path, tmp_path: Path, method: str) -> None:
    config = settings(one_class, tmp_path / "run", *METHODS[method])
    with pytest.raises(RequestError) as refused:
        train_run(config)
    assert str(refused.value) == (
        f"data.dataset={one_class} has 9 training images of one class, 'cats'; method.kind={config.method.kind} learns to "
        "distinguish classes and needs two or more (pack a folder with one folder for each class; training.epochs=0 uses the "
        "network as it is)"
    )
    assert not (tmp_path / "run").exists()


def test_one_class_can_be_embedded_without_training(one_class: Path, tmp_path: Path) -> None:
    assert train_run(settings(one_class, tmp_path / "run", epochs=0)).steps == 0


def test_lone_images_are_all_trained_on(lone_images: Path, tmp_path: Path) -> None:
    catalogue = Catalogue.open(lone_images)
    splits = split_run(catalogue, settings(lone_images, tmp_path))
    assert splits.stop is not None
    assert dict(zip(splits.train.labels.tolist(), splits.train.counts.tolist(), strict=True)) == {
        0: 12, 1: 6, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1,
    }  # fmt: skip
    assert splits.stop.labels.tolist() == [0, 1]


@pytest.mark.parametrize("method", ["deep_knn", "mined", "batch_hard", "few_shot_nca", "cross_entropy"])
def test_lone_images_are_warned_of_and_trained_on(
    lone_images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    config = settings(lone_images, tmp_path / "run", *METHODS[method])
    with caplog.at_level(logging.WARNING):
        summary = train_run(config)
    assert summary.steps > 0
    assert summary.loss == summary.loss  # a number
    assert summary.start_value is not None
    names = "('lone 0', 'lone 1', 'lone 2', 'lone 3', 'lone 4' and 1 more)"
    lone = (
        f"6 of 8 classes have one training image {names}; it has no other image of its class, so "
        f"method.kind={config.method.kind} uses it only as an image of another class"
    )
    unseen = f"6 of 8 classes have no image for validation {names}; knn/mcr@5 scores the other classes only"
    messages = [record.message for record in caplog.records]
    assert [text for text in messages if " of 8 classes " in text] == (
        [unseen] if method == "cross_entropy" else [lone, unseen]
    )


# A method that compares images of a class learns nothing without two of one; a classifier does.
@pytest.mark.parametrize("method", ["deep_knn", "mined", "batch_hard", "few_shot_nca"])
@pytest.mark.parametrize(
    ("of_each", "after", "way_out"),
    [
        (1, "", "method.kind=cross_entropy supports such classes"),
        (2, " once 5 are held out for validation", "training.patience=0 holds none out"),
    ],
)
def test_classes_of_one_training_image_each_are_refused(
    tmp_path: Path, method: str, of_each: int, after: str, way_out: str
) -> None:
    packed = pack_folder(tmp_path, {f"c{number}": of_each for number in range(5)})
    config = settings(packed, tmp_path / "run", *METHODS[method])
    with pytest.raises(RequestError) as refused:
        train_run(config)
    assert str(refused.value) == (
        f"data.dataset={packed} has one training image of each of its 5 classes{after}; method.kind={config.method.kind} "
        f"compares images of a class and needs a class with two ({way_out}; more images for each class)"
    )
    assert not (tmp_path / "run").exists()


def test_a_classifier_takes_classes_of_one_image_and_keeps_none_for_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed = pack_folder(tmp_path, {f"c{number}": 1 for number in range(5)})
    with caplog.at_level(logging.WARNING):
        summary = train_run(settings(packed, tmp_path / "run", *METHODS["cross_entropy"]))
    assert "there are no images for validation, so the last epoch is kept" in caplog.text
    assert summary.warning.startswith("there are no images for validation")
    assert (summary.best_value, summary.is_better_than_start) == (None, None)


def test_a_sound_folder_has_no_gaps(digits: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = settings(digits, tmp_path / "run")
    assert check_run(config, warn=told.append) > 0
    assert told == []
    # A run that keeps its last epoch by request gets no warning about it.
    check_run(settings(digits, tmp_path / "run", "training.patience=0"), warn=told.append)
    assert told == []
