"""The learning rate of each step against formulas written out, and as runs log it, resumed and not."""

import dataclasses
import json
import logging
import math
import time
from pathlib import Path

import pytest
import torch
from commands import GREY_16_PX

from fsl_dist.config import RunConfig, load_config, load_evaluation, load_resumed, load_run
from fsl_dist.errors import ConfigError, RequestError, TrainingError
from fsl_dist.training.checkpoint import FACTS, TENSORS, read_progress
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.launch import train_run
from fsl_dist.training.resume import check_resumable, settle
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.schedule import rate_factor, share_done
from index.base.checksums import encode_json
from index.base.files import crc32_of_file

STEPS_PER_EPOCH = 8


def rates(settings: TrainingConfig, num_images: int = 10) -> list[float]:
    """The factor of every step of a run whose steps have `num_images` images each."""
    return [
        rate_factor(
            settings,
            done=share_done(
                settings,
                steps_per_epoch=STEPS_PER_EPOCH,
                step=step,
                images_seen=step * num_images,
                num_images=num_images,
            ),
            epoch=step // STEPS_PER_EPOCH,
        )
        for step in range(settings.epochs * STEPS_PER_EPOCH)
    ]


def test_cosine_rises_linearly_and_falls_to_nothing() -> None:
    found = rates(TrainingConfig(epochs=5, schedule="cosine", warmup=0.1))
    # 40 steps, of which 4 warm up; the rate of a step is that of its middle.
    assert found[:4] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    for step in range(4, 40):
        angle = math.pi * (step + 0.5 - 4) / 36
        assert found[step] == pytest.approx((1 + math.cos(angle)) / 2)
    assert 0 < found[-1] < 0.002


def test_milestones_and_a_constant_rate_warm_up_too() -> None:
    milestones = TrainingConfig(epochs=4, schedule="milestones", lr_milestones=(1, 3), lr_gamma=0.5, warmup=0)
    assert rates(milestones) == [1.0] * 8 + [0.5] * 16 + [0.25] * 8
    constant = TrainingConfig(epochs=4, schedule="constant", warmup=0.25)
    assert rates(constant) == pytest.approx([(step + 0.5) / 8 for step in range(8)] + [1.0] * 24)


def test_a_limit_on_images_shortens_the_schedule() -> None:
    """160 images are 16 steps of 10; after them the rate stays at its end."""
    limited = rates(TrainingConfig(epochs=100, images=160, warmup=0.1))[:16]
    assert limited == pytest.approx(rates(TrainingConfig(epochs=2, warmup=0.1)))
    assert rates(TrainingConfig(epochs=2, images=10**6)) == rates(TrainingConfig(epochs=2))
    assert rates(TrainingConfig(epochs=3, images=160))[17:] == pytest.approx([0.0] * 7)


def test_a_limit_on_minutes_follows_the_seconds() -> None:
    """A step after s of 60 seconds is at (s + half a step) / 60, whatever epochs and images would say."""
    settings = TrainingConfig(epochs=1000, minutes=1, warmup=0.1)
    for step, seconds in ((1, 3.0), (10, 30.0), (20, 60.0)):
        done = share_done(
            settings, steps_per_epoch=8, step=step, images_seen=step * 10, num_images=10, seconds=seconds
        )
        assert done == pytest.approx(min(seconds * (step + 0.5) / step / 60, 1.0))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.warmup=1"], r"training\.warmup=1 must be at least 0 and below 1"),
        (["training.clip_norm=-1"], r"training\.clip_norm=-1 must be at least 0"),
        (["training.weight_decay=-0.1"], r"training\.weight_decay=-0\.1 must be auto or at least 0"),
        (["training.head_lr_factor=0"], r"training\.head_lr_factor=0 must be auto or above 0"),
        (
            ["training.lr_milestones=[2,4]"],
            r"lr_milestones=\[2, 4\] are used with training\.schedule=milestones; .*schedule=cosine",
        ),
        (["training.schedule=step"], r'training\.schedule="step" must be cosine, milestones or constant'),
    ],
)
def test_bad_values_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(None, overrides)
    assert "\n" not in str(raised.value)


def settings_of(digits: Path, run: Path, *more: str) -> RunConfig:
    return load_config(
        None,
        [
            *GREY_16_PX, f"data.dataset={digits}", f"run.dir={run}", "backbone.name=conv4", "backbone.width=4",
            "method.kind=cross_entropy", "training.batch_size=60", "training.patience=0", *more,
        ],
    )  # fmt: skip


def test_a_run_logs_the_rate_and_the_norm_of_its_gradient(digits: Path, tmp_path: Path) -> None:
    config = settings_of(digits, tmp_path / "run", "training.epochs=3", "training.lr=0.01")
    train_run(config)
    lines = [line for line in read_metrics(tmp_path / "run") if "train/lr" in line]
    steps = len(lines)
    expected = [
        0.01 * rate_factor(config.training, done=(step + 0.5) / steps, epoch=0) for step in range(steps)
    ]
    assert [line["train/lr"] for line in lines] == pytest.approx(expected)
    assert all(line["train/grad_norm"] > 0 for line in lines)
    # What depends on the weights is written down when the run starts.
    assert load_run(tmp_path / "run").training.head_lr_factor == 1.0


def test_a_run_of_so_many_minutes_ends_at_the_end_of_its_schedule(digits: Path, tmp_path: Path) -> None:
    settings = ("training.epochs=100000", "training.minutes=0.02", "training.lr=0.01")
    started = time.monotonic()
    summary = train_run(settings_of(digits, tmp_path / "run", *settings))
    assert summary.steps > 1
    assert time.monotonic() - started < 20
    lines = [line for line in read_metrics(tmp_path / "run") if "train/lr" in line]
    assert lines[-1]["train/lr"] < 0.005 < max(line["train/lr"] for line in lines)
    progress = read_progress(Path(summary.checkpoint))
    assert 1.2 <= progress.seconds < 10
    # It is over: resumed, it takes no further step.
    assert train_run(settings_of(digits, tmp_path / "run", *settings), resume=True).steps == summary.steps


def test_a_resume_says_when_the_rate_changes(caplog: pytest.LogCaptureFixture) -> None:
    stored = settle(load_config(None, ["data.dataset=x", "training.epochs=5"]), version=1)
    longer = dataclasses.replace(stored, training=dataclasses.replace(stored.training, epochs=9))
    with caplog.at_level(logging.WARNING):
        check_resumable(longer, stored)
    (record,) = caplog.records
    assert (
        "training.epochs=9 replaces the run's 5: the learning rate follows the run's length" in record.message
    )
    caplog.clear()
    fixed = ["data.dataset=x", "training.schedule=constant", "training.warmup=0", "training.epochs=5"]
    stored = settle(load_config(None, fixed), version=1)
    check_resumable(
        dataclasses.replace(stored, training=dataclasses.replace(stored.training, epochs=9)), stored
    )
    assert caplog.records == []


def test_a_resume_keeps_the_rate_of_heads_without_the_weights() -> None:
    """The file of the weights may be gone, since the checkpoint counts."""
    stored = settle(load_config(None, ["data.dataset=x", "backbone.weights=w.pth"]), version=1)
    assert stored.training.head_lr_factor == 10.0
    resumed = check_resumable(load_config(None, ["data.dataset=x"]), stored)
    assert resumed.head_lr_factor == 10.0
    other = load_config(None, ["data.dataset=x", "training.clip_norm=1"])
    with pytest.raises(RequestError, match=r"training\.clip_norm=1\.0 differs from the run's 5\.0"):
        check_resumable(other, stored)


def test_a_run_of_an_earlier_version_is_read_as_it_was_trained(tmp_path: Path) -> None:
    """Its file says every setting that there was, and no schedule."""
    stored = "training: {lr: 0.01, optimizer: sgd, weight_decay: 0.0, lr_milestones: [3, 5]}\nbackbone: {pretrained: true}\n"
    (tmp_path / "config.yaml").write_text(stored)
    for config in (load_run(tmp_path), load_resumed([f"run.dir={tmp_path}"])):
        training = config.training
        assert (training.schedule, training.lr_milestones, training.warmup) == ("milestones", (3, 5), 0.0)
        assert (training.clip_norm, training.ema, config.head_lr_factor) == (0.0, 0.0, 1.0)
    assert load_evaluation(tmp_path, ["evaluation.k_p=[3]"]).k_p == (3,)


def test_a_checkpoint_of_other_groups_is_refused(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(settings_of(digits, run, "training.epochs=1"))
    newest = max((run / "checkpoints").iterdir())
    tensors = torch.load(newest / TENSORS, weights_only=True)
    tensors["optimizer"]["param_groups"] = tensors["optimizer"]["param_groups"][:1]
    torch.save(tensors, newest / TENSORS)
    facts = json.loads((newest / FACTS).read_text())
    (newest / FACTS).write_bytes(
        encode_json({**facts, "crc32": crc32_of_file(newest / TENSORS)}, newest.name)
    )
    with pytest.raises(TrainingError, match=r"has the state of another optimizer.*backbone\.weights="):
        train_run(settings_of(digits, run, "training.epochs=2"), resume=True)
