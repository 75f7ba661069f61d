"""The comparison with what a user would do otherwise: its rows train on real digits, choose on validation, and resume."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

import fsl_dist
from benchmarks.practice import batches
from benchmarks.practice.backbone import load_blocks
from benchmarks.practice.outcome import Job
from benchmarks.practice.page import render_practice
from benchmarks.practice.parts import Prepared
from benchmarks.practice.records import read_record
from benchmarks.practice.rows import ROWS, Row
from benchmarks.practice.run import run_set
from benchmarks.practice.scores import Score, fit_knn, fit_logistic, fit_means, score
from benchmarks.practice.sets import SETS, WEIGHTS, PracticeSet, open_set, own_set
from fsl_dist.errors import RequestError, TrainingError

SMALL = PracticeSet("digits", "a few digits", image_size=32, images=192, copies=2, rates=(1e-4, 3e-3), whole_rates=(1e-3,),
                    has_flip=False)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """MobileNetV2 from a fixed seed."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pth"
    torch.save(models.mobilenet_v2().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def prepared(digits, weights, tmp_path_factory) -> Prepared:
    """The digits, without a val split: part of train is held out."""
    return Prepared(SMALL, fsl_dist.open_data(digits), weights, tmp_path_factory.mktemp("work"))


def clusters(rng, labels):
    """float32 [n, 4]: far apart, so that every head is right."""
    return (np.eye(4)[labels] * 9 + rng.normal(size=(len(labels), 4))).astype(np.float32)


@pytest.mark.parametrize("fit_head", [fit_knn, fit_means, fit_logistic])
def test_heads_find_classes_that_are_apart(fit_head):
    rng = np.random.default_rng(0)
    train, val, test = (np.repeat(np.arange(4), n) for n in (6, 3, 5))
    head = fit_head(clusters(rng, train), train, clusters(rng, val), val)
    assert head.val == Score(1.0, 1.0)
    np.testing.assert_array_equal(head.predict(clusters(rng, test)), test)


def test_k_p_follows_validation():
    # Of each class four images together, and one astray among the others: the vote of three outvotes it.
    own = np.array([0] * 5 + [1] * 5)
    angles = np.radians([0, 1, 2, 3, 88, 90, 89, 91, 92, 2.5])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    at = np.radians([2.5, 88, 1.6, 90.4])
    queries = np.stack([np.cos(at), np.sin(at)], axis=1).astype(np.float32)
    labels = np.array([0, 1, 0, 1])
    head = fit_knn(gallery, own, queries, labels)
    assert head.setting == "K_p 3"
    assert head.val.acc == 1.0


def test_a_score_is_accuracy_and_the_mean_of_class_recalls():
    found = score(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]) + np.array([0, 0, 0, 0]))
    assert found == Score(0.75, 0.75)
    found = score(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 2]))
    assert found == Score(0.75, 0.5)


def test_batches_are_what_they_are_called():
    labels = np.repeat(np.arange(12), [40, 20, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1])
    draw = np.random.default_rng(0)
    epochs = batches.shuffled(labels, draw)
    seen = np.concatenate([next(epochs) for _ in range(len(labels))])
    assert np.bincount(seen).tolist() == [batches.BATCH_SIZE] * len(labels)
    even = np.concatenate(
        [labels[batch] for batch, _ in zip(batches.balanced(labels, draw), range(60), strict=False)]
    )
    assert np.bincount(even).min() > 0.7 * np.bincount(even).mean()
    chosen = labels[next(batches.by_class(labels, draw))].reshape(8, 8)
    assert (chosen == chosen[:, :1]).all()
    assert len(np.unique(chosen[:, 0])) == 8


def test_the_parts_share_no_image_and_the_cache_is_of_train(prepared):
    parts = [set(part.rows.tolist()) for part in (prepared.train, prepared.val, prepared.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(prepared.data)
    views = prepared.activation_views
    plain = torch.cat(list(views.plain(prepared.train.rows[:5])))
    again = load_blocks(prepared.weights)[:14].eval()(
        next(prepared.pixel_views.plain(prepared.train.rows[:5]))
    )
    torch.testing.assert_close(plain, again, rtol=2e-3, atol=2e-3)
    first, second = (views.draw(prepared.train.rows[:5], np.random.default_rng(0)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


TRAINED = [name for name, row in ROWS.items() if row.learns]


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_row_gives_the_same_scores_for_the_same_seed(name, prepared):
    row = ROWS[name]
    if row.missing:
        pytest.skip(row.missing)

    def run(seed):
        outcome = row.run(Job(prepared, seed, 1e-3))
        assert outcome.images == SMALL.images
        assert all(result.val is not None for result in outcome.results.values())
        return [result.test() for result in outcome.results.values()]

    assert run(0) == run(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_row_learns_digits(name, digits, real_data, tmp_path):
    row = ROWS[name]
    if row.missing:
        pytest.skip(row.missing)
    chosen = dataclasses.replace(SMALL, image_size=64, images=1_280)
    own = Prepared(chosen, fsl_dist.open_data(digits), real_data / WEIGHTS, tmp_path)
    outcome = row.run(Job(own, 0, 3e-3))
    assert next(iter(outcome.results.values())).test().acc > 0.5, "chance is 0.1"


def test_what_is_finished_is_not_run_again(prepared, weights, tmp_path):
    names = ("frozen, cosine kNN", "prototypes, last blocks")
    chosen = dataclasses.replace(SMALL, source=lambda unpacked, work: pytest.fail("it is already packed"))
    work = tmp_path / "work"
    (work / "digits").mkdir(parents=True)
    (work / "digits" / "packed").symlink_to(prepared.data.folder)
    said: list[str] = []

    def run():
        return run_set(chosen, archives=None, weights=weights, work=work, out=tmp_path, seeds=2,
                       rows=[ROWS[name] for name in names], say=said.append)  # fmt: skip

    record = run()
    assert [(one.row, one.seed) for one in record.runs] == [(names[0], 0), (names[1], 0), (names[1], 1)]
    assert record.runs[1].rate == record.runs[2].rate in chosen.rates
    assert record.runs[1].tuning.seconds > 0 == record.runs[2].tuning.seconds
    assert len(said) == 3
    path = tmp_path / "digits.json"
    before = path.read_text()
    run()
    assert len(said) == 3
    assert path.read_text() == before
    assert read_record(path) == record
    page = render_practice(tmp_path)
    assert "| prototypes, last blocks: class means" in page
    assert page.count("\n| ") == 4, "the head, a rule and two rows"

    with pytest.raises(RequestError, match=r"was measured with images=192, not 500; move it away"):
        run_set(
            dataclasses.replace(chosen, images=500),
            archives=None,
            weights=weights,
            work=work,
            out=tmp_path,
            seeds=1,
        )


def test_a_row_that_needs_another_s_seconds_says_so(prepared, weights, tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "packed").symlink_to(prepared.data.folder)
    record = run_set(SMALL, archives=None, weights=weights, work=tmp_path, out=tmp_path, seeds=1,
                     rows=[ROWS["fsl_dist.fit"]])  # fmt: skip
    assert record.runs == []
    assert record.missing == {
        "fsl_dist.fit": "it is given the seconds of “fine-tuning, whole network”, which has not been run"
    }
    assert "fsl_dist.fit is missing" in render_practice(tmp_path)


def test_the_digits_are_packed_with_three_parts(tmp_path):
    data = open_set(SETS["digits"], None, tmp_path)
    sizes = {split: len(data.split_ids(split)) for split in data.split_names}
    assert sum(sizes.values()) == 1797
    assert sizes["test"] > 3 * sizes["train"] > 3 * sizes["val"]


def test_missing_archives_and_wrong_weights_are_one_line(tmp_path):
    with pytest.raises(RequestError, match=r"set groceries needs grocery.tar; FSL_DIST_TEST_DATA must name"):
        open_set(SETS["groceries"], None, tmp_path)
    with pytest.raises(RequestError, match=r"grocery.tar, which does not exist"):
        open_set(SETS["groceries"], tmp_path, tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(RequestError, match=r"weights.pth cannot be loaded as torchvision's MobileNetV2"):
        load_blocks(tmp_path / "weights.pth")
    (tmp_path / "digits.json").write_text(json.dumps({"runs": [{"row": 1}]}))
    with pytest.raises(
        RequestError, match=r"digits.json is not a file of `python -m benchmarks.suite practice`"
    ):
        read_record(tmp_path / "digits.json")


def test_an_own_folder_is_packed_again_where_an_image_changed(weights, tmp_path):
    folder = tmp_path / "birds"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((8, 8), 20 * number, np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")

    def run(out):
        (tmp_path / out).mkdir()
        return run_set(own_set(folder, 64, 64), archives=None, weights=weights, work=tmp_path / "work", out=tmp_path / out,
                       seeds=1, rows=[ROWS["frozen, class means"]])  # fmt: skip

    first = run("first")
    assert first.name == "birds"
    assert (first.config["train"], first.config["val"], first.config["test"]) == (14, 2, 4)
    assert run("second").config == first.config
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "a" / "0.png")
    assert run("third").config["fingerprint"] != first.config["fingerprint"]


def test_a_row_that_fails_is_missing_with_its_reason(prepared, weights, tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "packed").symlink_to(prepared.data.folder)

    def fail(job):
        raise TrainingError("there is no memory")

    rows = [Row("failing", fail), ROWS["frozen, class means"]]
    record = run_set(SMALL, archives=None, weights=weights, work=tmp_path, out=tmp_path, seeds=2, rows=rows)
    assert record.missing == {"failing": "seed 0 failed: there is no memory"}
    assert [run.row for run in record.runs] == ["frozen, class means"]


@pytest.mark.slow
def test_fit_is_a_row_with_its_own_seconds(digits, real_data, tmp_path):
    chosen = dataclasses.replace(SMALL, image_size=64)
    own = Prepared(chosen, fsl_dist.open_data(digits), real_data / WEIGHTS, tmp_path)
    outcome = ROWS["fsl_dist.fit"].run(Job(own, 0, budget_s=150.0))
    assert 20 < outcome.spent.seconds < 200
    assert outcome.results[""].test().acc > 0.5
    assert not list(own.work.glob("fit-*"))
