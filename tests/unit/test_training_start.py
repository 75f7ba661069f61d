"""The start is validated and competes: what is kept, what is said, and what evaluation shows of it."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fsl_dist
from cluster.cli import fsl_dist as program
from fsl_dist.config import RunConfig, load_config, render_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError, TrainingError
from fsl_dist.evaluation.report import evaluate_run
from fsl_dist.metrics.knn import vote
from fsl_dist.plots.curves import read_curve
from fsl_dist.training.checkpoint import CheckpointFolder, read_checkpoint, read_progress
from fsl_dist.training.launch import TrainingSummary, train_run
from fsl_dist.training.loop import Trainer
from fsl_dist.training.runlog import read_metrics, read_validations
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_start, open_trained

RUINOUS = (
    "method.loss=hinge",
    "method.k_same=5",
    "method.m_other=5",
    "method.margin=1.0",
    "method.normalise=false",
    "method.classes_per_batch=9",
    "training.lr=30",
    "training.optimizer=sgd",
    "training.weight_decay=0.0",
    "training.warmup=0.0",
    "training.clip_norm=0.0",
    "training.schedule=constant",
)
"""settings under which no epoch is better than the start, and later ones are worse"""


@pytest.fixture(scope="module")
def features(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise about a centre a class, one row a sample: a linear map of them is a good start."""
    catalogue = Catalogue.open(digits)
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(catalogue.num_classes, 10))
    path = tmp_path_factory.mktemp("features") / "x.npy"
    np.save(path, (centres[catalogue.labels] + rng.normal(size=(220, 10))).astype(np.float32))
    return path


def settings(digits: Path, features: Path, run: Path, *more: str, epochs: int = 3) -> RunConfig:
    return load_config(
        None,
        [
            f"data.dataset={digits}",
            f"data.features={features}",
            f"run.dir={run}",
            "backbone.name=mlp",
            "backbone.hidden=[16,8]",
            "training.batch_size=60",
            f"training.epochs={epochs}",
            *more,
        ],
    )


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]


@pytest.fixture(scope="module")
def ruined(digits: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    """A run whose training makes the network worse."""
    run = tmp_path_factory.mktemp("runs") / "ruined"
    return train_run(settings(digits, features, run, *RUINOUS, "training.keep_checkpoints=1"))


def test_a_ruined_network_is_not_kept(ruined: TrainingSummary, digits: Path, features: Path) -> None:
    run = Path(ruined.run)
    start, *trained = read_validations(run, "knn/mcr@5")
    assert start[0] == 0
    assert max(value for _, value in trained) <= start[1]
    assert ruined.best_value == ruined.start_value == start[1]
    assert ruined.is_better_than_start is False
    assert ruined.warning == (
        f"validation knn/mcr@5 never rose above the start's {start[1]:.4f} (best of training "
        f"{max(value for _, value in trained):.4f}): the start is kept. Usual remedies: training.lr below 30, "
        "more training.epochs"
    )
    assert ruined.checkpoint == str(run / "checkpoints" / "step-00000000")
    # The start is a network that was never trained, and it is scored as one.
    untrained = run.with_name("untrained")
    train_run(settings(digits, features, untrained, "training.patience=0", epochs=0))
    ours, theirs = open_trained(run), open_trained(untrained)
    for name, value in theirs.embedder.network.state_dict().items():
        assert torch.equal(ours.embedder.network.state_dict()[name], value)
    assert evaluate_run(run).metrics == evaluate_run(untrained).metrics


def test_the_starts_score_is_that_of_its_embeddings(
    ruined: TrainingSummary, digits: Path, features: Path
) -> None:
    config = settings(digits, features, Path(ruined.run))
    trained = open_trained(Path(ruined.run))
    splits = split_run(trained.catalogue, config)
    assert splits.stop is not None
    gallery, stop = (trained.embedder.embed(part.ids) for part in (splits.train, splits.stop))
    is_right = []
    for vector, label in zip(stop.astype(np.float64), splits.stop.sample_labels, strict=True):
        squared = ((gallery.astype(np.float64) - vector) ** 2).sum(axis=1)
        nearest = np.argsort(squared, kind="stable")[:5]
        is_right.append(
            vote(splits.train.sample_labels[nearest][None], squared[nearest][None], 5)[0] == label
        )
    of_class = [
        np.mean(np.array(is_right)[splits.stop.sample_labels == label]) for label in splits.stop.labels
    ]
    assert ruined.start_value == pytest.approx(np.mean(of_class), abs=1e-9)


def test_a_diverged_run_says_so_and_resumes_from_its_start(
    digits: Path, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    diverging = [setting for setting in RUINOUS if not setting.startswith("training.lr=")]
    with pytest.raises(TrainingError) as error:
        train_run(settings(digits, features, run, *diverging, "training.lr=1000000.0"))
    assert str(error.value).startswith(
        "the network of step-00000002 has diverged: the embedding of sample '0/0' (id 0 in "
    )
    assert str(error.value).endswith("in training, lower training.lr and training.weight_decay)")
    summary = train_run(settings(digits, features, run, *diverging, "training.lr=0.01"), resume=True)
    assert summary.steps == 6


def test_short_epochs_do_not_flood_the_log(
    digits: Path, features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fsl_dist"):
        train_run(settings(digits, features, tmp_path / "run", epochs=4))
    told = [record.message for record in caplog.records if "validation" in record.message]
    assert [text.split(": ")[0] for text in told] == ["start", "epoch 1"]


def test_patience_counts_from_the_start(digits: Path, features: Path, tmp_path: Path) -> None:
    config = settings(digits, features, tmp_path / "run", *RUINOUS, "training.patience=2", epochs=9)
    summary = train_run(config)
    assert summary.epochs == 2


def test_a_better_network_is_kept_with_the_start(digits: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["training.lr=0.02", "training.keep_checkpoints=1"]
    summary = train_run(settings(digits, features, run, *more, epochs=6))
    assert summary.best_value is not None
    assert summary.start_value is not None
    assert summary.best_value > summary.start_value
    assert summary.is_better_than_start is True
    assert summary.warning == ""
    checkpoints = CheckpointFolder(run, keep=1, owner=None)
    assert {folder.name for folder in checkpoints.finished()} == {
        "step-00000000",
        Path(summary.checkpoint).name,
        f"step-{summary.steps:08d}",
    }
    start = read_checkpoint(run / "checkpoints" / "step-00000000", torch.device("cpu"))
    assert start.optimizer["state"] == {}  # no larger than the network

    opened = fsl_dist.open_run(run)
    assert f"best knn/mcr@5 {summary.best_value:.4g} from {summary.start_value:.4g} at the start" in repr(
        opened
    )
    report = opened.evaluate()
    assert report.metrics == evaluate_run(run).metrics
    assert report.start.keys() == report.metrics.keys()
    assert report.start["knn/mcr@5"] < report.metrics["knn/mcr@5"]  # type: ignore[operator]
    untrained = tmp_path / "untrained"
    train_run(settings(digits, features, untrained, epochs=0))
    assert report.start == evaluate_run(untrained).metrics
    assert ">start</th>" in report._repr_html_()
    # Scored again, nothing is embedded.
    again = fsl_dist.open_run(run)
    assert again.evaluate() == report
    start_again = open_start(again.trained)
    assert start_again is not None
    assert again.trained.embedder.num_embedded == start_again.embedder.num_embedded == 0

    shown = CliRunner().invoke(program, ["evaluate", str(run)], catch_exceptions=False).stdout
    head, first = shown.splitlines()[1:4:2]
    assert head.split() == ["metric", "value", "%", "start", "%", "±", "std", "repeats"]
    assert first.split() == [
        "knn/acc@5",
        f"{report.metrics['knn/acc@5'] * 100:.2f}",  # type: ignore[operator]
        f"{report.start['knn/acc@5'] * 100:.2f}",  # type: ignore[operator]
    ]
    assert json.loads(json.dumps(report.to_json()))["start"] == report.start


def test_a_run_of_an_earlier_version_shows_no_start(digits: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(settings(digits, features, run, "training.patience=0"))
    report = fsl_dist.open_run(run).evaluate()
    assert report.start == {}
    assert report.to_json()["start"] == {}
    shown = CliRunner().invoke(program, ["evaluate", str(run)], catch_exceptions=False).stdout
    assert "start" not in shown
    assert ">start</th>" not in report._repr_html_()


def test_a_classifiers_own_score_has_no_start(digits: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["method.kind=cross_entropy", "training.stop_metric=mca/base", "training.lr=0.02"]
    summary = train_run(settings(digits, features, run, *more))
    assert summary.start_value is not None
    assert summary.start_value < 0.5  # a classifier drawn at random
    report = fsl_dist.open_run(run).evaluate()
    assert {name for name in report.metrics if name.startswith("softmax/")}
    assert report.start.keys() == {"knn/acc@5", "knn/mcr@5", "knn/rs@5"}
    assert fsl_dist.open_run(run).evaluate("softmax").start == {}


@pytest.mark.parametrize(
    "more",
    [
        ("method.kind=scatter", "episode.n_way=4", "episode.k_shot=4", "episode.n_query=3", "episode.per_epoch=3"),
        ("method.kind=pcn", "episode.n_way=4", "episode.k_shot=4", "episode.n_query=3",
         "episode.per_epoch=3", "method.clusters=2"),
    ],
    ids=["kmeans", "prototypes"],
)  # fmt: skip
def test_every_family_of_metrics_scores_the_start(
    digits: Path, features: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    config = settings(digits, features, tmp_path / "run", *more, epochs=1)
    summary = train_run(config)
    (start, after) = read_validations(tmp_path / "run", config.stop_metric)
    assert (start[0], after[0]) == (0, 3)
    assert summary.start_value == start[1]
    assert summary.best_value == max(start[1], after[1])


def test_a_resumed_run_is_the_same_run(digits: Path, features: Path, tmp_path: Path) -> None:
    whole, cut, again = (tmp_path / name for name in ("whole", "cut", "again"))
    more = ["mining.source=dataset", "training.lr=0.01"]
    train_run(settings(digits, features, whole, *more))
    # Only the start's checkpoint is there: as a kill in the first epoch leaves it.
    train_run(settings(digits, features, cut, *more, epochs=0))
    assert read_progress(cut / "checkpoints" / "step-00000000").start_value is not None
    train_run(settings(digits, features, cut, *more), resume=True)
    assert losses(cut) == losses(whole)
    assert read_validations(cut, "knn/mcr@5") == read_validations(whole, "knn/mcr@5")
    # Nor is a validation kept that no checkpoint followed.
    train_run(settings(digits, features, again, *more, epochs=0))
    for folder in (again / "checkpoints").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    train_run(settings(digits, features, again, *more), resume=True)
    assert read_validations(again, "knn/mcr@5") == read_validations(whole, "knn/mcr@5")


def test_the_start_and_the_first_mining_embed_once(digits: Path, features: Path, tmp_path: Path) -> None:
    config = settings(digits, features, tmp_path / "run", "mining.source=dataset", epochs=1)
    trainer = Trainer(config, group=WorkerGroup(), device=torch.device("cpu"), owner=None)
    splits = trainer.splits
    assert splits.stop is not None
    trainer.train()
    # Twice, before the first step and after the last: the table at step 0 embeds nothing of its own.
    assert trainer.embedder.num_embedded == 2 * (len(splits.train) + len(splits.stop))


def test_the_last_epoch_competes_where_no_validation_was_due(
    digits: Path, features: Path, tmp_path: Path
) -> None:
    more = ["training.lr=0.02", "training.validate_every=10"]
    summary = train_run(settings(digits, features, tmp_path / "run", *more, epochs=5))
    assert [step for step, _ in read_validations(tmp_path / "run", "knn/mcr@5")] == [0, summary.steps]
    assert summary.is_better_than_start is True


def test_without_training_there_is_only_the_start(digits: Path, features: Path, tmp_path: Path) -> None:
    summary = train_run(settings(digits, features, tmp_path / "run", epochs=0))
    assert summary.best_value == summary.start_value
    assert summary.start_value is not None
    assert (summary.is_better_than_start, summary.warning, summary.steps) == (None, "", 0)


def test_what_the_command_says_last(
    ruined: TrainingSummary, digits: Path, features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(run: str, *more: str) -> list[str]:
        config = tmp_path / f"{run}.yaml"
        config.write_text(render_config(settings(digits, features, tmp_path / run, *more)))
        arguments = ["train", "--config", str(config)]
        return CliRunner().invoke(program, arguments, catch_exceptions=False).stdout.splitlines()

    lines = train("ruined", *RUINOUS)
    assert lines[-3] == f"best checkpoint: {tmp_path / 'ruined' / 'checkpoints' / 'step-00000000'}"
    assert lines[-2] == f"next: fsl-dist evaluate {tmp_path / 'ruined'}"
    assert lines[-1] == f"warning: {ruined.warning}"
    assert f"best knn/mcr@5 {ruined.start_value:.4f} (start {ruined.start_value:.4f})" in lines[-4]
    lines = train("blind", "training.patience=0")
    assert lines[-1] == "not validated (training.patience=0): nothing was compared with the start"
    lines = train("kept", "data.holdout_fraction=0.0")
    assert lines[-1].startswith("warning: there are no images for validation, so the last epoch is kept")

    with caplog.at_level(logging.WARNING):
        fsl_dist.train(settings(digits, features, tmp_path / "python", *RUINOUS))
    assert f"{tmp_path / 'python'}: {ruined.warning}" in caplog.text


def test_the_start_is_at_epoch_0_of_a_curve(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "epoch": 0, "eval/knn/mcr@5": 0.5},
        {"step": 1, "epoch": 0, "train/images_seen": 60.0},
        {"step": 1, "epoch": 0, "eval/knn/mcr@5": 0.75},
    ]
    assert read_curve(lines, "eval/knn/mcr@5", "epoch", tmp_path) == ([0.0, 1.0], [0.5, 0.75])
    assert read_curve(lines, "eval/knn/mcr@5", "images", tmp_path) == ([0.0, 60.0], [0.5, 0.75])


def test_a_refused_first_step_frees_the_folder(
    digits: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(digits, features, tmp_path / "run")

    def refuse(self: Trainer, *_: object) -> None:
        raise RequestError("no step can be taken")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", refuse)
        with pytest.raises(RequestError, match="no step can be taken"):
            train_run(config)
    changed = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=40))
    assert train_run(changed).steps > 0
