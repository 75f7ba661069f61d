"""A run that starts from another run's network (deep kNN*), and the accuracy inside the training set."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fsl_dist.config import RunConfig, load_config, load_run
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.metrics.knn import vote
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import find_checkpoint, open_trained, resolve_weights


def settings(digits: Path, features: Path, run: Path, *more: str, hidden: str = "[8,6]") -> RunConfig:
    return load_config(
        None,
        [
            f"data.dataset={digits}",
            f"data.features={features}",
            f"run.dir={run}",
            "backbone.name=mlp",
            f"backbone.hidden={hidden}",
            "training.batch_size=60",
            "training.patience=0",
            *more,
        ],
    )


@pytest.fixture(scope="module")
def features(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise about a centre a class, one row a sample."""
    catalogue = Catalogue.open(digits)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(catalogue.num_classes, 10))
    path = tmp_path_factory.mktemp("features") / "x.npy"
    np.save(path, (centres[catalogue.labels] + rng.normal(size=(220, 10))).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def classifier(digits: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with cross entropy."""
    run = tmp_path_factory.mktemp("runs") / "ce"
    train_run(settings(digits, features, run, "method.kind=cross_entropy", "training.epochs=2"))
    return run


def test_a_run_starts_from_the_best_network_of_another(
    digits: Path, features: Path, classifier: Path, tmp_path: Path
) -> None:
    start = settings(
        digits, features, tmp_path / "star", f"backbone.weights={classifier}", "training.epochs=0"
    )
    train_run(start)
    theirs = torch.load(find_checkpoint(classifier) / "state.pt", weights_only=True)["network"]
    ours = torch.load(find_checkpoint(tmp_path / "star") / "state.pt", weights_only=True)["network"]
    assert set(ours) == {name for name in theirs if name.startswith("backbone.")}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # What was started from is written down to the file, so that the run can be resumed and reported.
    stored = load_run(tmp_path / "star").backbone.weights
    assert stored == str((find_checkpoint(classifier) / "state.pt").resolve())
    assert set(torch.load(stored, weights_only=True)["network"]) == set(theirs)


def test_a_run_that_cannot_be_started_from_is_told(
    digits: Path, features: Path, classifier: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    other = settings(digits, features, run, f"backbone.weights={classifier}", hidden="[7,6]")
    with pytest.raises(RequestError, match=r"does not fit backbone\.name=mlp: wrong shape 1\.weight"):
        train_run(other)
    with pytest.raises(ConfigError, match=r"backbone\.name=mlp, this one has backbone\.name=resnet18"):
        resolve_weights(load_config(None, [f"backbone.weights={classifier}", "backbone.name=resnet18"]))
    with pytest.raises(ConfigError, match="is not a run folder"):
        resolve_weights(load_config(None, [f"backbone.weights={tmp_path}"]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_bytes((classifier / "config.yaml").read_bytes())
    with pytest.raises(RequestError, match="has no checkpoint yet"):
        resolve_weights(load_config(None, [f"backbone.weights={tmp_path / 'empty'}", "backbone.name=mlp"]))
    assert not run.exists()
    plain = load_config(None, ["backbone.weights=file.pth"])
    assert resolve_weights(plain) == plain


@pytest.mark.parametrize("stops", [False, True])
def test_the_accuracy_inside_the_training_set_is_the_loop(
    digits: Path, features: Path, tmp_path: Path, stops: bool
) -> None:
    """By hand from the features: a network that is not trained, lr so small that it stays what it is."""
    run = tmp_path / "run"
    config = settings(
        digits, features, run, "training.log_train_knn=true", "training.epochs=2", "training.validate_every=2",
        "training.lr=1e-30", "training.weight_decay=0.0", "evaluation.k_p=[1,4]", "backbone.batch_norm=frozen",
    )  # fmt: skip
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, patience=3 if stops else 0)
    )
    train_run(config)
    lines = [line for line in read_metrics(run) if "eval/knn/train_acc@1" in line]
    assert [line["epoch"] for line in lines] == [1]
    assert ("eval/knn/acc@1" in lines[0]) == stops
    catalogue = Catalogue.open(digits)
    train = split_run(catalogue, config).train
    vectors = open_trained(run).embedder.embed(train.ids).astype(np.float64)
    for k_p in (1, 4):
        right = 0
        for row in range(len(train)):
            squared = ((vectors - vectors[row]) ** 2).sum(axis=1)
            squared[row] = np.inf
            order = np.argsort(squared, kind="stable")[:k_p]
            labels = train.sample_labels[order]
            right += vote(labels[None], squared[order][None], k_p)[0] == train.sample_labels[row]
        assert lines[0][f"eval/knn/train_acc@{k_p}"] == pytest.approx(right / len(train), abs=1e-9)
        assert 0.2 < right / len(train) < 1
