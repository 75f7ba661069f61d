"""Population based training without Ray: perturbed points, continuing from another trial's network, which keys may change."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.config import RunConfig, load_run
from fsl_dist.training.checkpoint import CheckpointFolder, read_checkpoint, read_progress
from fsl_dist.training.launch import train_run
from index.base.files import Owner
from index.base.settings import dump, known_keys, merge, validate
from tune.records import Change, SweepFolder
from tune.space import Knob, Point, nested
from tune.sweeps.changeable import CHANGEABLE
from tune.sweeps.engine.perturbing import perturb
from tune.sweeps.engine.take_over import take_over

SPACE = {
    "a": Knob(uniform=(-1.0, 3.0)),
    "b": Knob(loguniform=(1e-4, 1e-1)),
    "c": Knob(randint=(2, 40)),
    "d": Knob(choice=("x", (1, 2), True)),
    "e": Knob(grid=(10, 20, 30)),
}


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    trial=st.integers(0, 99),
    change=st.integers(0, 9),
    resample=st.sampled_from([0.0, 0.25, 1.0]),
    data=st.data(),
)
def test_a_perturbed_point_lies_in_the_space_near_its_donor(
    seed: int, trial: int, change: int, resample: float, data: st.DataObject
) -> None:
    donor: Point = {key: knob.place(data.draw(st.floats(0, 0.999))) for key, knob in SPACE.items()}
    point = perturb(SPACE, donor, seed=seed, trial=trial, change=change, resample=resample)
    assert point == perturb(SPACE, donor, seed=seed, trial=trial, change=change, resample=resample)
    assert list(point) == list(SPACE)
    assert -1 <= point["a"] <= 3
    assert 1e-4 * (1 - 1e-9) <= point["b"] <= 1e-1 * (1 + 1e-9)
    assert 2 <= point["c"] <= 40
    assert isinstance(point["c"], int)
    assert point["d"] in SPACE["d"].options
    if resample == 0:
        factor = point["b"] / donor["b"]
        assert factor == pytest.approx(0.8) or factor == pytest.approx(1.2) or point["b"] in (1e-4, 1e-1)
        assert abs(SPACE["e"].grid.index(point["e"]) - SPACE["e"].grid.index(donor["e"])) <= 1
        assert point["c"] != donor["c"] or point["c"] in (2, 40)


def test_a_value_that_is_none_of_a_knobs_is_drawn_anew() -> None:
    space = {"decay": Knob(uniform=(0.0, 0.1)), "clusters": Knob(choice=(1, 4))}
    point = perturb(space, {"decay": "auto", "clusters": 10}, seed=0, trial=1, change=0, resample=0.0)
    assert 0 <= point["decay"] <= 0.1
    assert point["clusters"] in (1, 4)


BASE: dict = {
    "data": {
        "channels": 1,
        "resize": "exact",
        "resize_size": 16,
        "image_size": 16,
        "mean": [0.5],
        "std": [0.5],
        "flip": False,
        "decoder": "torchvision",
        "holdout_fraction": 0.25,
    },
    "backbone": {"name": "conv4", "width": 4},
    "episode": {"n_way": 4, "k_shot": 3, "n_query": 2, "per_step": 1, "per_epoch": 2},
    "training": {
        "epochs": 1,
        "patience": 9,
        "lr": 1e-2,
        "batch_size": 24,
        "schedule": "constant",
        "warmup": 0,
    },
    "evaluation": {"delta_tau": [0], "kmeans_runs": 1},
}
PCN = {"method": {"kind": "pcn", "clusters": 2, "temperature": 1.0}}
HINGE = {"method": {"kind": "deep_knn", "loss": "hinge", "k_same": 2, "m_other": 2}}
SOFTMAX = {"method": {"kind": "cross_entropy"}}
SGD = {**SOFTMAX, "training": {"optimizer": "sgd"}}
STEPS = {**SOFTMAX, "training": {"schedule": "milestones", "lr_milestones": [1]}}
SCATTER = {"method": {"kind": "scatter", "scatter_weight": 0.1}}

# Each key with a run that has it, and a value that is not the run's.
CHANGES: Mapping[str, tuple[dict, float]] = {
    "training.lr": (SOFTMAX, 0.02),
    "training.lr_gamma": (STEPS, 0.5),
    "training.momentum": (SGD, 0.5),
    "training.weight_decay": (SOFTMAX, 0.4),
    "training.clip_norm": (SOFTMAX, 0.01),
    "method.temperature": (PCN, 3.0),
    "method.margin": (HINGE, 2.0),
    "method.memory": (PCN, 0.9),
    "method.min_responsibility": (PCN, 100.0),
    "method.scatter_weight": (SCATTER, 0.5),
    "method.label_smoothing": (SOFTMAX, 0.3),
    "method.mixup": (SOFTMAX, 0.5),
    "method.cutmix": (SOFTMAX, 0.5),
    "data.rotation": (SOFTMAX, 40.0),
    "data.erasing": (SOFTMAX, 0.9),
    "data.randaugment_magnitude": ({**SOFTMAX, "data": {"randaugment": 2}}, 2.0),
    "data.brightness": (SOFTMAX, 0.5),
    "data.contrast": (SOFTMAX, 0.5),
    "data.saturation": ({**SOFTMAX, "data": {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}}, 0.5),
}


def test_the_table_has_keys_of_a_run_and_this_test_tries_each() -> None:
    assert set(CHANGEABLE) == set(CHANGES)
    assert set(CHANGEABLE) <= known_keys(RunConfig)


def configure(parts: dict, dataset: Path, folder: Path, epochs: int) -> RunConfig:
    over = {"data": {"dataset": str(dataset)}, "training": {"epochs": epochs}, "run": {"dir": str(folder)}}
    return validate(RunConfig, merge(merge(BASE, parts), over), "the test")


def weights_of(folder: Path) -> torch.Tensor:
    latest = CheckpointFolder(folder, keep=1, owner=None).latest()
    assert latest is not None
    network = read_checkpoint(latest, torch.device("cpu")).network
    return torch.cat([weight.flatten().double() for weight in network.values()])


@pytest.mark.parametrize("key", CHANGES)
def test_a_trial_that_takes_over_goes_on_as_its_donor_does_but_for_what_changes(
    base_novel: Path, tmp_path: Path, key: str
) -> None:
    parts, value = CHANGES[key]
    files = SweepFolder(tmp_path)
    donor, same, other = (files.start(number, number - 1, {}) for number in (1, 2, 3))
    for trial in (donor, same, other):
        train_run(configure(parts, base_novel, trial.folder, 1))
    own = _value(load_run(donor.folder), key)
    ended = {}
    for trial, point in ((same, {key: own}), (other, {key: value})):
        trial = files.change(trial, donor.number, 1, point)
        run = configure(merge(parts, nested(point)), base_novel, trial.folder, 2)
        stale = Owner.claim(trial.folder)
        take_over(run, trial)
        with pytest.raises(Exception, match="stops writing"):
            stale.check()  # what trained here before is shut out
        before = CheckpointFolder(trial.folder, keep=1, owner=None).finished()
        take_over(run, trial)
        assert CheckpointFolder(trial.folder, keep=1, owner=None).finished() == before, "done once"
        train_run(run, resume=True)
        assert _value(load_run(trial.folder), key) == point[key]
        ended[trial.number] = weights_of(trial.folder)
    train_run(configure(parts, base_novel, donor.folder, 2), resume=True)
    assert torch.equal(ended[2], weights_of(donor.folder))
    if key != "data.saturation":  # the digits are grey
        assert not torch.equal(ended[3], weights_of(donor.folder))


def test_a_trial_that_was_killed_while_it_took_over_does_it_again(base_novel: Path, tmp_path: Path) -> None:
    files = SweepFolder(tmp_path)
    donor, own = (files.start(number, number - 1, {}) for number in (1, 2))
    for trial, epochs in ((donor, 2), (own, 3)):
        train_run(configure(PCN, base_novel, trial.folder, epochs))
    changed = files.change(own, 1, 2, {"method.temperature": 2.0})
    run = configure(merge(PCN, nested(changed.point)), base_novel, own.folder, 3)
    take_over(run, changed)
    (own.folder / "change.json").unlink()
    checkpoints = CheckpointFolder(own.folder, keep=1, owner=None)
    for folder in checkpoints.finished()[1:]:
        folder.rename(folder.with_name(f".staging-{folder.name}"))
    take_over(run, changed)
    latest = checkpoints.latest()
    assert latest is not None
    assert read_progress(latest).epoch == 2
    assert checkpoints.best() is not None
    assert SweepFolder(tmp_path).trials()[1].changes == (Change(donor=1, epoch=2, before={}),)
    with pytest.raises(Exception, match="has no checkpoint to continue from"):
        take_over(
            run,
            replace(
                files.change(own, 7, 1, {}), changes=(*changed.changes, Change(donor=7, epoch=1, before={}))
            ),
        )


def _value(config: RunConfig, key: str) -> object:
    tree: object = dump(config)
    for part in key.split("."):
        assert isinstance(tree, dict)
        tree = tree[part]
    return tree
