"""The average of the weights against a plain loop, in what a run scores and keeps, and resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import GREY_16_PX

from fsl_dist.config import RunConfig, load_config
from fsl_dist.errors import ConfigError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.training.checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_trained
from fsl_dist.training.weight_average import WeightAverage


def decay_of(ema: float, num_before: int) -> float:
    return min(ema, (1 + num_before) / (10 + num_before))


def test_the_average_is_the_loop() -> None:
    torch.manual_seed(0)
    network = build_network(BackboneConfig(name="conv4", width=3), sample_shape=(1, 16, 16)).double()
    average, expected = WeightAverage(0.3), {}
    for step in range(6):
        network(torch.randn(4, 1, 16, 16, dtype=torch.float64))  # moves the running statistics
        for parameter in network.parameters():
            parameter.data += torch.randn_like(parameter)
        average.update(network, step)
        for name, value in network.state_dict().items():
            flat = value.reshape(-1).tolist()
            if step == 0 or name.endswith("num_batches_tracked"):
                expected[name] = flat
            else:
                decay = decay_of(0.3, step)
                expected[name] = [
                    decay * old + (1 - decay) * new for old, new in zip(expected[name], flat, strict=True)
                ]
    assert set(average.state) == set(network.state_dict())
    for name, value in average.state.items():
        assert value.reshape(-1).tolist() == pytest.approx(expected[name], rel=1e-12)
    assert len(average.running_statistics()) == 8

    own = {name: value.clone() for name, value in network.state_dict().items()}
    with average.in_place_of(network):
        assert all(torch.equal(value, average.state[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


def test_without_a_decay_nothing_is_kept() -> None:
    network = build_network(BackboneConfig(name="mlp", hidden=(3,)), sample_shape=(2,))
    average = WeightAverage(0.0)
    average.update(network, 0)
    assert average.state == {}
    before = [parameter.clone() for parameter in network.parameters()]
    with average.in_place_of(network):
        assert all(map(torch.equal, before, network.parameters()))
    with pytest.raises(ConfigError, match=r"training\.ema=1 must be at least 0 and below 1"):
        load_config(None, ["training.ema=1"])


def settings_of(digits: Path, run: Path, *more: str) -> RunConfig:
    return load_config(
        None,
        [
            *GREY_16_PX, f"data.dataset={digits}", f"run.dir={run}", "backbone.name=conv4", "backbone.width=16",
            "method.kind=deep_knn", "mining.source=dataset", "mining.refresh_steps=3", "training.batch_size=66",
            "training.epochs=4", "training.lr=0.003", "training.clip_norm=0.1", "training.ema=0.8",
            "training.checkpoint_steps=1", "training.keep_checkpoints=100", "data.holdout_fraction=0.3",
            "evaluation.k_p=[1,5]", *more,
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def averaged(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with cosine, warm-up, clipping and an average, that kept every step."""
    run = tmp_path_factory.mktemp("runs") / "averaged"
    train_run(settings_of(digits, run))
    return run


def checkpoints_of(run: Path) -> list[Checkpoint]:
    finished = CheckpointFolder(run, keep=1, owner=None).finished()
    return [read_checkpoint(folder, torch.device("cpu")) for folder in finished]


def test_a_run_averages_every_step_and_is_scored_by_the_average(averaged: Path) -> None:
    by_step = [checkpoint for checkpoint in checkpoints_of(averaged) if checkpoint.progress.global_step]
    assert len(by_step) > 6
    expected = {name: value.double() for name, value in by_step[0].network.items()}
    for step, checkpoint in enumerate(by_step):
        if step:
            decay = decay_of(0.8, step)
            for name, value in checkpoint.network.items():
                expected[name] = decay * expected[name] + (1 - decay) * value.double()
        for name, value in checkpoint.average.items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)
    best = CheckpointFolder(averaged, keep=1, owner=None).best()
    assert best is not None
    kept = read_checkpoint(best, torch.device("cpu"))
    trained = open_trained(averaged)
    used = trained.embedder.network.state_dict()
    assert all(torch.equal(value, kept.average[name]) for name, value in used.items())
    assert any(not torch.equal(value, kept.network[name]) for name, value in used.items())

    splits = split_run(trained.catalogue, trained.config)
    assert splits.stop is not None
    vectors = trained.embedder.embed(splits.stop.ids)
    gallery = trained.embedder.embed(splits.train.ids).astype(np.float64)
    distances = ((vectors.astype(np.float64)[:, None] - gallery[None]) ** 2).sum(-1)
    is_own = splits.train.sample_labels[None] == splits.stop.sample_labels[:, None]
    own, other = (np.where(mask, distances, np.inf).min(axis=1) for mask in (is_own, ~is_own))
    # float32 embeddings of another batch round otherwise: an image as near to both says nothing.
    is_sure = np.abs(own - other) > 1e-5 * np.maximum(own, other)
    num_right, num_unsure = int((is_sure & (own < other)).sum()), int((~is_sure).sum())
    assert num_unsure <= 1
    lines = [line for line in read_metrics(averaged) if line["step"] == kept.progress.global_step]
    (found,) = [line["eval/knn/acc@1"] for line in lines if "eval/knn/acc@1" in line]
    assert num_right <= round(found * len(splits.stop.ids), 6) <= num_right + num_unsure


def test_a_run_that_was_cut_off_is_the_same_run(digits: Path, averaged: Path, tmp_path: Path) -> None:
    """Cut off at the end of an epoch, then in the midst of one: steps, schedule, norms and averages are equal."""
    config = settings_of(digits, tmp_path / "parted")

    def fail(epochs: int, value: float) -> bool:
        raise OSError("the machine is gone")

    with pytest.raises(OSError, match="gone"):
        train_run(config, watch=fail)  # before the checkpoint that the validation would have written
    train_run(config, resume=True, watch=lambda epochs, value: True)
    train_run(config, resume=True)
    names = ("train/loss", "train/lr", "train/grad_norm")
    whole, parted = (
        [[line[name] for name in names] for line in read_metrics(run) if "train/loss" in line]
        for run in (averaged, tmp_path / "parted")
    )
    assert parted == whole
    assert max(norm for _, _, norm in whole) > 0.1  # else nothing was clipped
    last, again = checkpoints_of(averaged)[-1], checkpoints_of(tmp_path / "parted")[-1]
    assert last.progress == again.progress
    for name, value in last.average.items():
        assert torch.equal(value, again.average[name])
        assert torch.equal(last.network[name], again.network[name])


def test_a_run_that_starts_from_another_takes_its_average(averaged: Path) -> None:
    last = checkpoints_of(averaged)[-1]
    network = build_network(
        BackboneConfig(name="conv4", width=16, weights=str(last.folder / "state.pt")),
        sample_shape=(1, 16, 16),
    )
    for name, value in network.state_dict().items():
        assert torch.equal(value, last.average[name])
