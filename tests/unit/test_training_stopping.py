"""A run that is asked to stop, in one process: where it stops, what it keeps, and that it resumes to the same weights."""

from pathlib import Path

import pytest
import torch

from fsl_dist.config import RunConfig, load_config
from fsl_dist.embedder import Embedder
from fsl_dist.training import checkpoint
from fsl_dist.training.checkpoint import TENSORS, CheckpointFolder, read_progress
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import read_metrics
from index.base.stopping import Stopped, StopRequest


def settings(digits: Path, run: Path, *more: str) -> RunConfig:
    return load_config(
        None,
        [
            f"data.dataset={digits}",
            f"run.dir={run}",
            *("data.channels=1", "data.image_size=16", "data.resize=exact", "data.resize_size=16"),
            *("data.mean=[0.5]", "data.std=[0.5]", "data.decoder=torchvision", "data.holdout_fraction=0.25"),
            *("backbone.name=conv4", "backbone.width=4", "method.kind=cross_entropy"),
            *("training.epochs=3", "training.batch_size=30", "evaluation.batch_size=10", "run.trackers=[]"),
            *more,
        ],
    )


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    latest = CheckpointFolder(run, keep=1, owner=None).latest()
    assert latest is not None
    found = torch.load(latest / TENSORS, weights_only=True)["network"]
    assert isinstance(found, dict)
    return found


def assert_same_end(run: Path, whole: Path) -> None:
    wanted = weights_of(whole)
    assert all(torch.equal(value, wanted[name]) for name, value in weights_of(run).items())
    kept = [CheckpointFolder(one, keep=1, owner=None).finished() for one in (run, whole)]
    assert [folder.name for folder in kept[0]] == [folder.name for folder in kept[1]]
    assert read_progress(kept[0][-1]) == read_progress(kept[1][-1])
    evaluations = [
        {line["step"]: line for line in read_metrics(one) if "eval/knn/mcr@5" in line} for one in (run, whole)
    ]
    assert evaluations[0] == evaluations[1]


@pytest.mark.parametrize("more", [[], ["training.images=60"]], ids=str)
def test_a_stop_in_a_validation_is_resumed_with_it(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Also where the run's images are used up, so that nothing but the validation is left."""
    stop, calls, embed = StopRequest(), 0, Embedder.embed

    def ask(self: Embedder, ids: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:  # two for the start, then the validation after the first epoch
            stop.ask(15)
        return embed(self, ids)  # type: ignore[arg-type]

    run, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", ask)
        with pytest.raises(
            Stopped, match=r"^stopped: .*/step-\d+ is kept, after step \d+ \(training with resume=True"
        ):
            train_run(settings(digits, run, "training.stop_metric=knn/mcr@5", *more), stop=stop)
    latest = CheckpointFolder(run, keep=1, owner=None).latest()
    assert latest is not None
    assert read_progress(latest).owes_validation
    assert not list(run.glob("index/*/staging/*"))
    train_run(settings(digits, run, "training.stop_metric=knn/mcr@5", *more), resume=True)
    train_run(settings(digits, whole, "training.stop_metric=knn/mcr@5", *more))
    assert_same_end(run, whole)


def test_a_run_that_is_stopped_before_its_first_step_keeps_nothing_and_begins_again(
    digits: Path, tmp_path: Path
) -> None:
    stop = StopRequest()
    stop.ask(2)
    config = settings(digits, tmp_path / "run", "training.patience=0")
    with pytest.raises(Stopped, match="has no checkpoint yet") as stopped:
        train_run(config, stop=stop)
    assert stopped.value.exit_code == 130
    assert train_run(config, resume=True).epochs == 3


def test_the_next_start_removes_what_a_killed_process_left(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = settings(digits, run, "training.patience=0")
    train_run(config)
    for litter in ("checkpoints/.staging-step-00000007-1", "index/train/staging/a1b2c3"):
        (run / litter).mkdir(parents=True)
        (run / litter / "state.pt").write_bytes(b"half")
    (run / ".config.yaml.0123456789ab.tmp").write_bytes(b"half")
    train_run(config, resume=True)
    assert not [*run.rglob(".staging-*"), *run.glob("index/*/staging/*"), *run.rglob("*.tmp")]


def test_a_disk_that_refuses_a_checkpoint_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as error:
        checkpoint.save_tensors({"network": {"w": torch.zeros(100)}}, Path("/dev/full"))
    assert error.value.filename == "/dev/full"
