"""Runs with `mining.anchors=near`: stopped inside an epoch that went through several tables, they go on as the same run."""

import json
from pathlib import Path

import numpy as np
import pytest

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.errors import ConfigError
from fsl_dist.training.checkpoint import FACTS
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import read_metrics


@pytest.fixture(scope="module")
def features(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise about a centre a class, one row a sample."""
    catalogue = Catalogue.open(digits)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(catalogue.num_classes, 10))
    path = tmp_path_factory.mktemp("features") / "x.npy"
    noise = rng.normal(size=(catalogue.num_samples, 10))
    np.save(path, (centres[catalogue.labels] + noise).astype(np.float32))
    return path


def settings(digits: Path, features: Path, run: Path, *more: str, source: str = "dataset") -> RunConfig:
    # 120 training images, 8 anchors a step: 15 steps an epoch; tables take effect at steps 0, 8, 14, 20, 26.
    return load_config(
        None,
        [
            f"data.dataset={digits}", f"data.features={features}", f"run.dir={run}", "backbone.name=mlp",
            "backbone.hidden=[8,6]", "method.kind=deep_knn", "method.k_same=3", "method.m_other=4",
            f"mining.source={source}", "mining.anchors=near", "mining.refresh_steps=6", "mining.refresh_lag=2",
            "training.batch_size=64", "training.epochs=2", "training.patience=0", "training.lr=1e-2",
            # Cut off and resumed here by a limit on images, which a schedule would follow.
            "training.schedule=constant", "training.warmup=0", *more,
        ],
    )  # fmt: skip


def steps_of(run: Path) -> list[tuple[float, float]]:
    lines = {line["step"]: line for line in read_metrics(run) if "train/loss" in line}
    return [(lines[step]["train/loss"], lines[step]["train/images_seen"]) for step in sorted(lines)]


def test_a_run_resumed_inside_an_epoch_is_the_same_run(digits: Path, features: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_run(settings(digits, features, whole))
    steps = steps_of(whole)
    assert len(steps) == 30
    # After 22 steps: the second epoch's order is made from the table of step 12, another one is active since step 20.
    train_run(settings(digits, features, cut, f"training.images={int(steps[21][1])}"))
    newest = sorted((cut / "checkpoints").glob(f"step-*/{FACTS}"))[-1]
    method = json.loads(newest.read_text())["method"]
    assert (method["order_epoch"], method["order_step"], method["table_step"]) == (1, 12, 18)
    train_run(settings(digits, features, cut), resume=True)
    assert steps_of(cut) == steps


def test_batch_mining_has_no_near_anchors(digits: Path, features: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        settings(digits, features, tmp_path, source="batch")
    assert "mining.anchors=near goes by the neighbour table of mining.source=dataset" in str(error.value)
