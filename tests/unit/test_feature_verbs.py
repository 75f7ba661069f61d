"""The commands on frozen features: baselines against plain loops, t-SNE's picture, and their one-line errors."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import call, refusal
from PIL import Image
from threadpoolctl import threadpool_limits

from cluster.commands.baseline import baseline
from cluster.commands.plot import plot
from fsl_dist.config import load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.plots.tsne import class_colours, draw_points, lay_out
from fsl_dist.training.launch import train_run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """t-SNE of a few points: threads that wait for each other on a busy machine take fifty times as long."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def features(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The class in two of eight coordinates, the other six loud noise."""
    catalogue, rng = Catalogue.open(digits), np.random.default_rng(0)
    angles = catalogue.labels * (2 * np.pi / catalogue.num_classes)
    points = rng.normal(size=(catalogue.num_samples, 8)) * ([0.1] * 2 + [1.5] * 6)
    points[:, 0] += np.cos(angles) * 2
    points[:, 1] += np.sin(angles) * 2
    path = tmp_path_factory.mktemp("features") / "x.npy"
    np.save(path, points.astype(np.float32))
    return path


@pytest.mark.parametrize("k_p", [1, 5])
def test_knn_is_the_loop_over_all_training_features(digits: Path, features: Path, k_p: int) -> None:
    found = json.loads(
        call(baseline, "knn", digits, "--features", features, f"evaluation.k_p=[{k_p}]", "--json").stdout
    )
    catalogue, vectors = Catalogue.open(digits), np.load(features).astype(np.float64)
    train, test = catalogue.split_ids("train"), catalogue.split_ids("test")
    right = Counter[int]()
    for query in test:
        squared = ((vectors[train] - vectors[query]) ** 2).sum(axis=1)
        nearest = catalogue.labels[train][np.argsort(squared)[:k_p]].tolist()
        votes = Counter(nearest)
        # Equal votes: the class met first among the neighbours.
        winner = max(votes, key=lambda label: (votes[label], -nearest.index(label)))
        right[int(catalogue.labels[query])] += winner == catalogue.labels[query]
    assert found["metrics"][f"knn/acc@{k_p}"] == pytest.approx(sum(right.values()) / len(test))
    # Ten test images of each class: the mean class recall is the same, and so is that of the rarest, which are all.
    assert found["metrics"][f"knn/mcr@{k_p}"] == pytest.approx(sum(right.values()) / len(test))
    assert found["metrics"][f"knn/rs@{k_p}"] == pytest.approx(sum(right.values()) / len(test))
    assert (found["baseline"], found["dim"], found["split"]) == ("knn", 8, "test")


def test_learned_maps_find_the_coordinates_that_tell_classes_apart(digits: Path, features: Path) -> None:
    def accuracy(name: str, *more: object) -> float:
        answer = call(baseline, name, digits, "--features", features, "--json", *more)
        assert answer.exit_code == 0, answer.exception
        return json.loads(answer.stdout)["metrics"]["knn/acc@5"]

    plain = accuracy("knn")
    assert plain < 0.5
    assert accuracy("lmnn") > plain + 0.3
    assert accuracy("nca") > plain + 0.3
    # All components keep every distance; two of them keep noise.
    assert accuracy("knn", "--pca", 8) == pytest.approx(plain, abs=0.011)
    assert accuracy("knn", "--pca", 2) < plain


def test_mistakes_about_features(digits: Path, features: Path, tmp_path: Path) -> None:
    told = refusal(baseline, "lmnn", digits, "--features", features, "--pca", 9)
    assert "pca=9" in told
    assert "0 … 8" in told
    assert "run.seed plays no part" in refusal(baseline, "knn", digits, "--features", features, "run.seed=1")
    assert "nowhere.npy" in refusal(baseline, "knn", digits, "--features", tmp_path / "nowhere.npy")
    broken = np.load(features)
    broken[3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    told = refusal(baseline, "nca", digits, "--features", tmp_path / "nan.npy")
    assert "nan.npy' row 3 contains a NaN" in told


def test_tsne_of_a_run_is_drawn(digits: Path, features: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "pictures" / "tsne.png"
    overrides = [
        f"data.dataset={digits}", f"data.features={features}", f"run.dir={run}", "backbone.name=mlp",
        "backbone.hidden=[4]", "training.epochs=0", "training.batch_size=20",
    ]  # fmt: skip
    train_run(load_config(None, overrides))
    answer = call(plot, "tsne", run, "--out", out, "--images", 30, "--json")
    assert answer.exit_code == 0, answer.exception
    (drawn,) = json.loads(answer.stdout)["panels"]
    assert (drawn["split"], drawn["num_images"]) == ("test", 30)
    shown = {colour for _, colour in Image.open(out).getcolors(1 << 20)}
    assert 5 < drawn["num_classes"] <= 10
    assert set(class_colours(drawn["num_classes"])) <= shown
    again = tmp_path / "again.png"
    call(plot, "tsne", run, "--out", again, "--images", 30)
    assert again.read_bytes() == out.read_bytes()
    # Several runs are side by side.
    copied, both = shutil.copytree(run, tmp_path / "copied"), tmp_path / "both.png"
    answer = call(plot, "tsne", run, copied, "--out", both, "--images", 30, "--json")
    assert [panel["run"] for panel in json.loads(answer.stdout)["panels"]] == [str(run), str(copied)]
    with Image.open(both) as two, Image.open(out) as one:
        assert (two.width, two.height) == (2 * one.width, one.height)
        assert (
            two.crop((20, 40, one.width, one.height)).tobytes()
            == one.crop((20, 40, one.width, one.height)).tobytes()
        )
    assert "out=x.pdf must end in .png" in refusal(plot, "tsne", run, "--out", "x.pdf")
    told = refusal(plot, "tsne", run, "--out", out, "--split", "novel")
    assert "split novel" in told
    assert "train, test" in told


@pytest.mark.parametrize("dim", [1, 6])
def test_clusters_stay_apart_in_the_plane(dim: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, dim)).astype(np.float32)
    vectors[30:] += 40
    places = lay_out(vectors, seed=0)
    assert places.shape == (60, 2)
    for row in range(60):
        squared = ((places - places[row]) ** 2).sum(axis=1)
        assert set((np.argsort(squared)[:6] < 30).tolist()) == {row < 30}


def test_two_images_and_hundreds_of_classes_are_drawn_too() -> None:
    assert lay_out(np.eye(2, 3, dtype=np.float32), seed=0).shape == (2, 2)
    assert len(set(class_colours(200))) == 200
    names = [f"class {number}" for number in range(200)]
    draw_points(np.zeros((200, 2)), np.arange(200), names)
