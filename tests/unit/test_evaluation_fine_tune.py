"""FT-CE: a classifier retrained for each draw, against a forward pass and scores in plain float64."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError
from fsl_dist.evaluation import fine_tune as module
from fsl_dist.evaluation.report import evaluate_run
from fsl_dist.metrics.class_scores import Repeated
from fsl_dist.metrics.few_shot import draws_of
from fsl_dist.samplers.shuffled import class_balanced_batch
from fsl_dist.training.launch import train_run
from fsl_dist.training.loop import Trainer
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_trained
from index.base.files import hold_lock

NUM_DRAWS = 2


@pytest.fixture(scope="module")
def features(base_novel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise about a centre a class, one row a sample."""
    catalogue = Catalogue.open(base_novel)
    rng = np.random.default_rng(0)
    centres = 1.2 * rng.normal(size=(catalogue.num_classes, 10))
    path = tmp_path_factory.mktemp("features") / "x.npy"
    noise = rng.normal(size=(catalogue.num_samples, 10))
    np.save(path, (centres[catalogue.labels] + noise).astype(np.float32))
    return path


def settings(dataset: Path, features: Path, run: Path, *more: str) -> RunConfig:
    return load_config(
        None,
        [
            f"data.dataset={dataset}",
            f"data.features={features}",
            f"run.dir={run}",
            "backbone.name=mlp",
            "backbone.hidden=[12,8]",
            "backbone.embedding_dim=6",
            "method.kind=cross_entropy",
            "method.balance=sampling",
            "training.batch_size=40",
            "training.lr=0.02",
            "training.schedule=constant",  # a draw is cut off here by its number of epochs
            "training.warmup=0",
            f"evaluation.draws={NUM_DRAWS}",
            "evaluation.fine_tune_epochs=4",
            *more,
        ],
    )


@pytest.fixture(scope="module")
def run(base_novel: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the base classes that stopped by its own mean class accuracy."""
    folder = tmp_path_factory.mktemp("runs") / "ft"
    train_run(settings(base_novel, features, folder, "training.stop_metric=mca/base", "training.epochs=8"))
    return folder


def plain_logits(network: dict[str, torch.Tensor], x: np.ndarray) -> np.ndarray:
    """Backbone (linear, batch norm, ReLU, linear) → linear → ReLU → linear, float64."""
    w = {name: value.double().numpy() for name, value in network.items()}
    x = x @ w["backbone.1.weight"].T + w["backbone.1.bias"]
    x = (x - w["backbone.2.running_mean"]) / np.sqrt(w["backbone.2.running_var"] + 1e-5)
    x = np.maximum(x * w["backbone.2.weight"] + w["backbone.2.bias"], 0)
    x = x @ w["backbone.4.weight"].T + w["backbone.4.bias"]
    hidden = np.maximum(x @ w["head.weight"].T + w["head.bias"], 0)
    return hidden @ w["classifier.weight"].T + w["classifier.bias"]


def test_base_training_stops_by_the_classifiers_mean_class_accuracy(run: Path, features: Path) -> None:
    trained = open_trained(run)
    splits = split_run(trained.catalogue, trained.config)
    assert splits.stop is not None
    network = {name: value.cpu() for name, value in trained.embedder.network.state_dict().items()}
    logits = plain_logits(network, np.load(features)[splits.stop.ids].astype(np.float64))
    right = splits.train.labels[logits.argmax(axis=1)] == splits.stop.sample_labels
    of_class = [right[splits.stop.sample_labels == label].mean() for label in splits.stop.labels]
    lines = [line for line in read_metrics(run) if "eval/mca/base" in line]
    assert lines
    assert "eval/knn/mcr@5" not in lines[0]
    assert max(line["eval/mca/base"] for line in lines) == pytest.approx(np.mean(of_class), abs=1e-12)
    # No training image was embedded for it.
    assert not (run / "index" / "train").exists()


def train_draw(run: Path, folder: Path, number: int, epochs: int | None = None) -> Trainer:
    """The training of one draw, by the module's own pieces."""
    trained = open_trained(run)
    splits = split_run(trained.catalogue, trained.config)
    assert splits.novel is not None
    draw = list(draws_of(splits.novel.sample_labels, trained.config.evaluation, seed=0))[number]
    train, start = module.selection_of_draw(splits, splits.novel, draw), trained.embedder.network
    config = module.config_of_draw(trained.config, folder, draw)
    if epochs is not None:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=epochs))
    trainer = Trainer(
        config,
        group=WorkerGroup(),
        device=trained.embedder.device,
        owner=None,
        splits=dataclasses.replace(splits, train=train, gallery=train),
        start_competes=False,
    )
    module.start_from(start, trainer.network, np.searchsorted(train.labels, splits.train.labels))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    x = np.load(trained.config.data.features)[splits.train.ids[:20]].astype(np.float64)
    both = np.searchsorted(train.labels, splits.train.labels)
    np.testing.assert_allclose(plain_logits(before, x)[:, both], plain_logits(start.state_dict(), x))
    trainer.train()
    return trainer


def test_scores_equal_a_forward_pass_and_plain_loops(run: Path, features: Path, tmp_path: Path) -> None:
    metrics = evaluate_run(run, protocol="fine_tune").metrics
    trained = open_trained(run)
    splits, labels = split_run(trained.catalogue, trained.config), trained.catalogue.labels
    assert splits.novel is not None
    assert splits.query is not None
    x = np.load(features).astype(np.float64)
    collected: dict[str, list[float]] = {}
    draws = draws_of(splits.novel.sample_labels, trained.config.evaluation, seed=0)
    for number, draw in enumerate(draws):
        trainer = train_draw(run, tmp_path / str(number), number)
        # The best epoch by base validation, out of those that were taken.
        best = trainer.checkpoints.best()
        assert best is not None
        network = torch.load(best / "state.pt", weights_only=True)["network"]
        classes = sorted({*splits.train.labels.tolist(), *splits.novel.labels.tolist()})
        assert len(network["classifier.bias"]) == len(classes) == 10
        support, tested = splits.novel.ids[draw.support], splits.novel.ids[draw.test]
        assert not set(support.tolist()) & set(tested.tolist())
        assert set(trainer.splits.train.ids.tolist()) == {*splits.train.ids.tolist(), *support.tolist()}
        hits: dict[tuple[str, int], dict[int, list[bool]]] = {}
        samples = [("base", i) for i in splits.query.ids.tolist()] + [("novel", i) for i in tested.tolist()]
        for kind, sample in samples:
            logits = plain_logits(network, x[sample : sample + 1])[0]
            ranked = [classes[place] for place in np.argsort(-logits)]
            for group in (kind, "base_novel"):
                for k in (1, 5, 10):
                    of_class = hits.setdefault((group, k), {}).setdefault(int(labels[sample]), [])
                    of_class.append(int(labels[sample]) in ranked[:k])
        for (group, k), by_class in hits.items():
            every = [hit for some in by_class.values() for hit in some]
            balanced = float(np.mean([np.mean(some) for some in by_class.values()]))
            names = {f"mca/{group}": balanced}
            if k > 1:
                names = {
                    f"recall@{k}/{group}": float(np.mean(every)),
                    f"balanced_recall@{k}/{group}": balanced,
                }
            for name, value in names.items():
                collected.setdefault(name, []).append(value)
    assert set(metrics) == set(collected)
    for name, values in collected.items():
        value = metrics[name]
        assert isinstance(value, Repeated)
        assert (value.mean, value.std, value.n) == pytest.approx((np.mean(values), np.std(values), NUM_DRAWS))
    novel = metrics["mca/novel"]
    assert isinstance(novel, Repeated)
    assert 0.1 < novel.mean < 1
    assert metrics["mca/base"] != novel


def test_a_killed_evaluation_goes_on_to_the_same_scores(run: Path, tmp_path: Path) -> None:
    whole = evaluate_run(run, protocol="fine_tune").metrics
    (kept,) = (folder for folder in (run / "evaluation" / "fine_tune").iterdir() if folder.is_dir())
    assert sorted(path.name for path in kept.iterdir()) == ["draw-000.npz", "draw-001.npz"]
    finished = (kept / "draw-000.npz").stat()
    # As a kill in the second draw leaves it: one epoch of its training, and no result.
    (kept / "draw-001.npz").unlink()
    train_draw(run, kept / "draw-001", 1, epochs=1)
    assert evaluate_run(run, protocol="fine_tune").metrics == whole
    assert (kept / "draw-000.npz").stat().st_mtime_ns == finished.st_mtime_ns
    # More draws add to those that are there; another number of shots is another result.
    more = dataclasses.replace(open_trained(run).config.evaluation, draws=1)
    (one,) = (
        value
        for name, value in evaluate_run(run, protocol="fine_tune", settings=more).metrics.items()
        if name == "mca/base"
    )
    assert isinstance(one, Repeated)
    assert one.n == 1
    shutil.copytree(kept, tmp_path / "kept")
    fewer = dataclasses.replace(more, novel_shots=2)
    evaluate_run(run, protocol="fine_tune", settings=fewer)
    assert len([path for path in kept.parent.iterdir() if path.is_dir()]) == 2


def test_novel_classes_are_drawn_as_often_as_base_ones(run: Path) -> None:
    trained = open_trained(run)
    splits = split_run(trained.catalogue, trained.config)
    assert splits.novel is not None
    (draw, *_) = draws_of(splits.novel.sample_labels, trained.config.evaluation, seed=0)
    train = module.selection_of_draw(splits, splits.novel, draw)
    config = module.config_of_draw(trained.config, run / "unused", draw)
    assert getattr(config.method, "balance", "") == "sampling"
    ids = np.concatenate(
        [class_balanced_batch(train, batch_size=100, seed=1, epoch=0, step=step) for step in range(40)]
    )
    shares = np.bincount(trained.catalogue.labels[ids], minlength=10) / len(ids)
    np.testing.assert_allclose(shares, 0.1, atol=0.02)


def test_requests_that_cannot_be_served_are_refused(
    run: Path, base_novel: Path, digits: Path, features: Path, tmp_path: Path
) -> None:
    untrained = "training.epochs=0"
    deep = load_config(
        None,
        [
            f"data.dataset={base_novel}", f"data.features={features}", f"run.dir={tmp_path / 'deep'}",
            "backbone.name=mlp", untrained,
        ],
    )  # fmt: skip
    train_run(deep)
    with pytest.raises(RequestError, match=r"fine_tune belongs to method\.kind=cross_entropy; .* deep_knn"):
        evaluate_run(tmp_path / "deep", protocol="fine_tune")
    config = open_trained(run).config
    too_many = dataclasses.replace(config.evaluation, novel_shots=30)
    with pytest.raises(RequestError, match=r"evaluation\.novel_shots=30 with novel_test=5 needs 35"):
        evaluate_run(run, protocol="fine_tune", settings=too_many)
    np.save(tmp_path / "plain.npy", np.load(features)[: Catalogue.open(digits).num_samples])
    train_run(settings(digits, tmp_path / "plain.npy", tmp_path / "plain", untrained))
    for protocol in ("fine_tune", "few_shot_knn"):
        with pytest.raises(RequestError, match=f"protocol={protocol} scores novel classes; .* has none"):
            evaluate_run(tmp_path / "plain", protocol=protocol)
    name = module.name_of_settings(open_trained(run), config, split_run(open_trained(run).catalogue, config))
    with (
        hold_lock(run / "evaluation" / "fine_tune" / f"{name}.lock"),
        pytest.raises(RequestError, match="is locked"),
    ):
        evaluate_run(run, protocol="fine_tune")


def test_the_classifiers_own_scores(run: Path, features: Path) -> None:
    metrics = evaluate_run(run, protocol="softmax").metrics
    trained = open_trained(run)
    splits = split_run(trained.catalogue, trained.config)
    assert splits.query is not None
    logits = plain_logits(
        trained.embedder.network.state_dict(), np.load(features)[splits.query.ids].astype(np.float64)
    )
    right = splits.train.labels[logits.argmax(axis=1)] == splits.query.sample_labels
    recalls = {label: right[splits.query.sample_labels == label].mean() for label in splits.query.labels}
    rarest = splits.gallery.labels[splits.gallery.counts == splits.gallery.counts.min()]
    assert metrics["softmax/acc"] == pytest.approx(right.mean(), abs=1e-12)
    assert metrics["softmax/mcr"] == pytest.approx(np.mean(list(recalls.values())), abs=1e-12)
    of_rarest = right[np.isin(splits.query.sample_labels, rarest)]
    assert metrics["softmax/rs"] == pytest.approx(of_rarest.mean(), abs=1e-12)
    # It belongs to what a classifier is scored by unless a protocol is named.
    assert metrics.items() <= evaluate_run(run).metrics.items()


def test_fewer_novel_classes_are_the_largest(run: Path) -> None:
    def scores(novel_classes: int) -> dict[str, float | Repeated]:
        config = dataclasses.replace(open_trained(run).config.evaluation, novel_classes=novel_classes)
        return evaluate_run(run, protocol="few_shot_knn", settings=config).metrics

    # All novel classes have equally many images: the first by label stays.
    everything, one = scores(0), scores(1)
    assert everything == scores(3)
    name = f"mca/novel;k_p={open_trained(run).config.evaluation.k_p[0]}"
    for found in (everything, one):
        assert isinstance(found[name], Repeated)
    assert one[name] != everything[name] or one[name].mean == 1.0  # type: ignore[union-attr]
    with pytest.raises(
        RequestError, match=r"novel_classes=4 is more than the number of novel classes in the data set: 3"
    ):
        scores(4)
