"""The shipped sweeps over the training recipe: each loads, its points make runs that the data can serve, and the knobs are all there."""

from dataclasses import replace
from pathlib import Path

import pytest

from fsl_dist.shipped import EXPERIMENTS
from tune.plan import Plan
from tune.records import SweepFolder
from tune.search import check_search
from tune.sweep_file import load_sweep
from tune.sweeps.config import SweepConfig
from tune.sweeps.trial import check_point

NAMES = sorted(path.stem for path in (EXPERIMENTS / "sweeps").glob("recipe-*.yaml"))
KNOBS = {
    "backbone.freeze",
    "backbone.layer_decay",
    "backbone.lora_rank",
    "data.randaugment_magnitude",
    "method.cutmix",
    "method.k_same",
    "method.label_smoothing",
    "method.m_other",
    "method.mixup",
    "method.temperature",
    "mining.anchor_power",
    "training.ema",
    "training.head_lr_factor",
    "training.lr",
}
"""of the recipe, each of which some shipped sweep varies"""


def load(name: str, *overrides: str) -> SweepConfig:
    config = load_sweep(EXPERIMENTS / "sweeps" / f"{name}.yaml", overrides)
    assert isinstance(config, SweepConfig)
    return config


def test_every_knob_of_the_recipe_is_swept() -> None:
    assert len(NAMES) <= 8
    varied = {key for name in NAMES for key in load(name).space}
    assert varied >= KNOBS


@pytest.mark.parametrize("name", NAMES)
def test_points_of_a_shipped_sweep_make_runs(name: str) -> None:
    config = load(name, "data.dataset=data/mine")
    check_search(config)
    assert Path(config.dir).name == name
    points = [config.point(number) for number in range(config.num_points)]
    assert len({str(point) for point in points}) == len(points)
    for point in points:
        run = config.trial_config(point)
        assert run.training.validate_every <= getattr(config.scheduler, "grace_epochs", run.training.epochs)
    # Both ends of every range, and every option, make a run too.
    for key, knob in config.space.items():
        for value in knob.options or (*knob.uniform, *knob.loguniform, *knob.randint):
            config.trial_config({**points[0], key: value})


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_sweep_plans_its_trials(name: str, digits: Path, tmp_path: Path) -> None:
    config = load(name, f"data.dataset={digits}", f"dir={tmp_path}", "include_base=false")
    plan = Plan(replace(config, trials=2), SweepFolder(tmp_path), check_point)
    for number in (1, 2):
        trial = plan.next()
        assert trial is not None
        assert (trial.number, set(trial.point)) == (number, set(config.space))
    assert plan.next() is None
    assert plan.with_state("pruned") == []


@pytest.mark.heavy
def test_every_count_of_frozen_layers_and_the_head_alone_can_be_trained(digits: Path, tmp_path: Path) -> None:
    config = load("recipe-freeze", f"data.dataset={digits}")
    for value in config.space["backbone.freeze"].options:
        check_point(config, {"backbone.freeze": value}, tmp_path / "run")
