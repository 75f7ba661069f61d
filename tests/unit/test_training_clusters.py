"""Runs on classes that are disjoint between train, val and test: trained, stopped by clusters, scored by clusters."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.report import evaluate_run
from fsl_dist.metrics.clustering import cluster_scores, find_clusters
from fsl_dist.metrics.config import CLUSTER_SCORES, EvaluationConfig
from fsl_dist.seeding import generator
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.trained import open_trained

BOTH = {f"{protocol}/{name}" for protocol in ("kmeans", "spectral") for name in CLUSTER_SCORES}
SCATTER = [
    "method.kind=scatter",
    "episode.n_way=4",
    "episode.k_shot=4",
    "episode.n_query=3",
    "episode.per_epoch=3",
]
CLASSIC = ["method.kind=cross_entropy", "training.stop_metric=kmeans/ca", "training.batch_size=16"]


def pack_digits(folder: Path, **options: object) -> Path:
    """A packed data set of 12 images of each digit."""
    scans = load_digits()
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True)
        for member in np.flatnonzero(scans.target == label)[:12]:
            scan = (scans.images[member] * (255 / 16)).astype(np.uint8)
            Image.fromarray(scan).save(folder / "images" / str(label) / f"{member}.png")
    pack(folder / "images", folder / "packed", PackOptions(**options))
    return folder / "packed"


@pytest.fixture(scope="module")
def disjoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes 4 : 3 : 3."""
    return pack_digits(tmp_path_factory.mktemp("disjoint"), split="classes", fractions=(0.4, 0.3, 0.3))


@pytest.fixture(scope="module")
def features(disjoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise about a centre a class, one row a sample."""
    catalogue = Catalogue.open(disjoint)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(catalogue.num_classes, 10))
    path = tmp_path_factory.mktemp("features") / "x.npy"
    np.save(path, (centres[catalogue.labels] + rng.normal(size=(120, 10))).astype(np.float32))
    return path


def settings(dataset: Path, features: Path, run: Path, *more: str, epochs: int = 3) -> RunConfig:
    return load_config(
        None,
        [
            f"data.dataset={dataset}",
            f"data.features={features}",
            f"run.dir={run}",
            "backbone.name=mlp",
            "backbone.hidden=[16,6]",
            f"training.epochs={epochs}",
            # Cut off and resumed here by a limit on images, which a schedule would follow.
            "training.schedule=constant",
            "training.warmup=0",
            *more,
        ],
    )


@pytest.mark.parametrize("method", [SCATTER, CLASSIC], ids=["scatter", "classic"])
def test_a_run_stops_by_the_clusters_of_classes_it_has_not_seen(
    method: list[str], disjoint: Path, features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        summary = train_run(settings(disjoint, features, run, *method))
        report = evaluate_run(run)
    assert caplog.text == ""  # nobody complains about classes without training images
    measured = [line["eval/kmeans/ca"] for line in read_metrics(run) if "eval/kmeans/ca" in line]
    assert len(measured) == 1 + 3  # the start, then each epoch
    assert summary.start_value == measured[0]
    assert (summary.stop_metric, summary.best_value) == ("kmeans/ca", max(measured))
    assert report.split == "test"
    assert set(report.metrics) == BOTH
    assert report.metrics["kmeans/ca"].n == EvaluationConfig().clustering_runs

    # The same by hand: the best network's embeddings of the test images, clustered and scored.
    trained = open_trained(run)
    test = trained.catalogue.select("test")
    assert test.num_classes == 3
    assert not np.isin(test.labels, trained.catalogue.select("train").labels).any()
    vectors = trained.embedder.embed(test.ids)
    scores = []
    for number in range(5):
        random_state = int(generator(0, "clustering", number).integers(2**32))
        clusters = find_clusters(vectors, 3, starts=1, random_state=random_state)
        scores.append(cluster_scores(clusters, test.sample_labels))
    for name in CLUSTER_SCORES:
        assert report.metrics[f"kmeans/{name}"].mean == pytest.approx(np.mean([of[name] for of in scores]))


def test_the_terms_of_the_loss_are_logged(disjoint: Path, features: Path, tmp_path: Path) -> None:
    for weight, logged in (
        ("0.25", {"train/scatter", "train/scatter_clamped", "train/cross_entropy", "train/accuracy"}),
        ("0.0", {"train/cross_entropy", "train/accuracy"}),
        ("1.0", {"train/scatter", "train/scatter_clamped"}),
    ):
        run = tmp_path / weight
        train_run(
            settings(
                disjoint, features, run, *SCATTER, f"method.scatter_weight={weight}", "training.patience=0"
            )
        )
        line = next(iter(read_metrics(run)))
        assert {key for key in line if key.startswith("train/")} == logged | {
            "train/loss",
            "train/images_seen",
            "train/lr",
            "train/grad_norm",
        }
        if weight == "0.25":
            mixed = 0.25 * line["train/scatter"] + 0.75 * line["train/cross_entropy"]
            assert line["train/loss"] == pytest.approx(mixed, rel=1e-5)
    assert not any((tmp_path / "0.0").glob("index/train"))  # no training image is embedded


def test_a_resumed_run_is_the_same_run(disjoint: Path, features: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train_run(settings(disjoint, features, whole, *SCATTER))
    train_run(settings(disjoint, features, parted, *SCATTER, "training.images=50"))
    train_run(settings(disjoint, features, parted, *SCATTER), resume=True)

    def losses(run: Path) -> list[float]:
        return [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]

    assert len(losses(whole)) == 9
    assert losses(parted) == losses(whole)


def test_a_network_that_is_not_trained_is_scored(disjoint: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(settings(disjoint, features, run, *SCATTER, epochs=0))
    report = evaluate_run(run, settings=EvaluationConfig(clustering_runs=2))
    assert set(report.metrics) == BOTH
    assert report.metrics["spectral/ari"].n == 2
    assert json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("kind", "stop_metric"),
    [("cross_entropy", "knn/mcr@5"), ("deep_knn", "knn/mcr@5"), ("cross_entropy", "mca/base")],
)
def test_stop_metrics_that_need_trained_classes_are_refused_before_training(
    kind: str, stop_metric: str, disjoint: Path, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = settings(disjoint, features, run, f"method.kind={kind}", f"training.stop_metric={stop_metric}")
    with pytest.raises(RequestError) as caught:
        train_run(config)
    assert str(caught.value) == (
        f"training.stop_metric={stop_metric} compares images with others of their class; none of the 3 classes of the val "
        "split is among the 4 of train (training.stop_metric=kmeans/ca clusters them instead)"
    )
    assert not run.exists()


def test_one_class_makes_no_clusters(features: Path, tmp_path: Path) -> None:
    packed = pack_digits(tmp_path, split="classes", fractions=(0.8, 0.1, 0.1))
    with pytest.raises(
        RequestError, match=r"stop_metric=kmeans/ca .* needs two of their classes; there is 1 \(training"
    ):
        train_run(settings(packed, features, tmp_path / "run", *SCATTER))
    run = tmp_path / "last"
    train_run(settings(packed, features, run, *SCATTER, "training.patience=0", epochs=1))
    with pytest.raises(RequestError, match=r"protocol=kmeans .* the 12 images to cluster have 1"):
        evaluate_run(run)


def test_other_protocols_say_that_the_classes_are_disjoint(
    disjoint: Path, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_run(settings(disjoint, features, run, *SCATTER, epochs=0))
    with pytest.raises(
        RequestError, match=r"protocol=prototypes belongs to method\.kind=pcn; .* has scatter"
    ):
        evaluate_run(run, protocol="prototypes")


def test_without_test_images_there_is_nothing_to_cluster(features: Path, tmp_path: Path) -> None:
    packed = pack_digits(tmp_path, split="classes", fractions=(1.0, 0.0, 0.0))
    run = tmp_path / "run"
    train_run(settings(packed, features, run, *SCATTER, "training.patience=0", epochs=1))
    with pytest.raises(
        RequestError, match=r"protocol=kmeans clusters the test images; .* has no test and no val split"
    ):
        evaluate_run(run)


def test_classes_with_training_images_are_clustered_too(features: Path, tmp_path: Path) -> None:
    """kmeans by name on an ordinary split; a scatter run takes the clusters by default there as well."""
    packed = pack_digits(tmp_path, split="stratified", fractions=(0.6, 0.2, 0.2))
    run = tmp_path / "knn"
    train_run(settings(packed, features, run, "training.batch_size=60", epochs=1))
    assert "knn/acc@5" in evaluate_run(run).metrics
    assert set(evaluate_run(run, protocol="spectral").metrics) == {
        f"spectral/{name}" for name in CLUSTER_SCORES
    }
    run = tmp_path / "scatter"
    train_run(settings(packed, features, run, *SCATTER, epochs=1))
    assert set(evaluate_run(run).metrics) == BOTH
