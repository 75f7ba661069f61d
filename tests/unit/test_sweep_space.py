"""A sweep's space and settings: what is drawn, what is refused before anything starts."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.config import RunConfig
from fsl_dist.methods.deep_knn import DeepKNNConfig
from index.base.errors import ConfigError, RequestError
from index.base.settings import parse_yaml, validate
from tune.records import Trial
from tune.search import next_point
from tune.space import Knob, draw_point, grid_point, grid_size, nested, show_point
from tune.sweep_file import load_sweep, parse_sweep, render_sweep
from tune.sweeps.config import SweepConfig

ROOT = Path(__file__).parents[2]

BASE = """
base:
  data: {dataset: packed}
  method: {kind: pcn, temperature: 3.0}
  episode: {k_shot: 4, n_query: 3}
  training: {patience: 3, epochs: 6}
"""
SPACE = "space:\n  method.temperature: {loguniform: [2.5, 10]}\n  method.clusters: {choice: [1, 5]}\n"


def load(tmp_path: Path, text: str, *overrides: str) -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return load_sweep(path, overrides)


KNOBS = {
    "a": Knob(uniform=(-1.0, 3.0)),
    "b": Knob(loguniform=(1e-4, 1e-1)),
    "c": Knob(randint=(2, 4)),
    "d": Knob(choice=("x", (1, 2), True)),
    "e": Knob(grid=(10, 20)),
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "fsl_dist" / "experiments" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_sweeps_of_experiments_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_sweep(path)
    assert config.num_points > 0
    assert Path(config.dir) == ROOT / "sweeps" / path.stem
    read = config.base.data.dataset if isinstance(config, SweepConfig) else config.index.vectors
    assert read.startswith(str(ROOT))


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), number=st.integers(0, 10_000))
def test_a_point_lies_in_its_space_and_is_a_function_of_seed_and_number(seed: int, number: int) -> None:
    point = draw_point(KNOBS, seed, number)
    assert -1 <= point["a"] < 3
    assert 1e-4 * (1 - 1e-9) <= point["b"] < 1e-1 * (1 + 1e-9)
    assert point["c"] in (2, 3, 4)
    assert point["d"] in ("x", (1, 2), True)
    assert point["e"] == (10, 20)[number % 2]
    assert draw_point(KNOBS, seed, number) == point
    # An additional knob changes nothing.
    assert draw_point({"a": KNOBS["a"], "c": KNOBS["c"]}, seed, number) == {"a": point["a"], "c": point["c"]}


def test_draws_fill_their_range_evenly() -> None:
    points = [draw_point(KNOBS, 0, number) for number in range(2000)]
    below = sum(math.log10(float(point["b"])) < -2.5 for point in points) / len(points)
    assert below == pytest.approx(0.5, abs=0.04)
    for value in (2, 3, 4):
        assert sum(point["c"] == value for point in points) / 2000 == pytest.approx(1 / 3, abs=0.04)


def test_a_grid_is_every_combination_once() -> None:
    space = {"a": Knob(grid=(1, 2)), "b": Knob(choice=("x", "y", "z"))}
    points = [grid_point(space, number) for number in range(grid_size(space))]
    assert len({tuple(point.items()) for point in points}) == 6
    assert points[1] == {"a": 1, "b": "y"}
    assert nested({"m.a": (1, 2), "m.b": 3, "c.d": True}) == {"m": {"a": [1, 2], "b": 3}, "c": {"d": True}}
    assert show_point({"m.a": (1, 2), "b": 0.12345}) == "m.a=[1,2] b=0.1235"


def test_a_sweep_is_read_laid_over_and_written_back(tmp_path: Path) -> None:
    text = (
        BASE
        + "settings: {training: {lr: 1e-2}, episode.n_query: 2}\n"
        + SPACE
        + "  training: {momentum: {uniform: [0, 0.9]}}\n"
        + "evaluation: {evaluation.k_p: [1, 5], delta_tau: [-2, 0, 3], novel_clusters: [1, 4, 8]}\n"
    )
    config = load(tmp_path, text, "trials=7", "training.epochs=9", "scheduler=asha")
    assert (config.base.training.lr, config.base.episode.n_query, config.base.training.epochs) == (0.01, 2, 9)
    assert list(config.space) == ["method.temperature", "method.clusters", "training.momentum"]
    assert (config.trials, config.scheduler.kind, config.max_epochs) == (7, "asha", 9)
    again = validate(SweepConfig, parse_yaml(render_sweep(config), "written"), "written")
    assert again == config
    run = config.trial_config({"method.temperature": 2.5, "training.momentum": 0.5}, "somewhere")
    assert isinstance(run, RunConfig)
    assert (run.training.momentum, run.run.dir, run.workers.gpu) == (0.5, "somewhere", "never")


def test_the_evaluation_grid_takes_lists_at_once_and_leaves_out_illegal_temperatures(tmp_path: Path) -> None:
    text = BASE + SPACE + "evaluation: {k_p: [1, 5], delta_tau: [-2.75, 0, 3], novel_clusters: [1, 4]}\n"
    config = load(tmp_path, text, "evaluation.draws=[2,3]")
    cells = config.evaluation_settings(config.trial_config({"method.temperature": 2.5}))
    assert [cell for cell, _ in cells] == [
        {"novel_clusters": clusters, "draws": draws} for clusters in (1, 4) for draws in (2, 3)
    ]
    assert all(s.k_p == (1, 5) and s.delta_tau == (0.0, 3.0) for _, s in cells)
    assert config.evaluation_settings(config.trial_base())[0][1].delta_tau == (-2.75, 0.0, 3.0)


def test_another_kind_of_method_drops_the_settings_of_the_base(tmp_path: Path) -> None:
    config = load(tmp_path, BASE + "space:\n  method.kind: {choice: [pcn, deep_knn]}\n")
    assert config.trial_config({"method.kind": "pcn"}).method == config.base.method
    assert config.trial_config({"method.kind": "deep_knn"}).method == DeepKNNConfig()
    named = load(tmp_path, BASE + "space:\n  method.kind: {choice: [pcn, deep_knn]}\n", "metric=mca/base")
    with pytest.raises(
        ConfigError, match=r"training.stop_metric=mca/base is not measured for method.kind=deep_knn"
    ):
        named.trial_config({"method.kind": "deep_knn"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASE, "space is empty"),
        (BASE + "space: {}", "space is empty"),
        (BASE + "space: {method.temprature: {choice: [1]}}", "did you mean method.temperature?"),
        (BASE + "space: {evaluation.k_p: {choice: [1]}}", "needs no training: put it under evaluation"),
        (BASE + "space: {run.dir: {choice: [a]}}", "space.run.dir is the same for all trials"),
        (BASE + "space: {method.clusters: 3}", "must be a knob, such as"),
        (BASE + "space: {method.clusters: {choices: [3]}}", "space.method.clusters.choices must be a knob"),
        (BASE + "space: {training.lr: {uniform: [2, 1]}}", "must be [low, high], low below high"),
        (BASE + "space: {training.lr: {loguniform: [0, 1]}}", "must be above 0"),
        (
            BASE + "space: {training.lr: {loguniform: [1, 2], choice: [1]}}",
            "loguniform and choice|choice and log",
        ),
        (BASE + "space: {training.lr: {choice: [1, 1]}}", "names a value twice"),
        (
            BASE + "space: {method.margin: {choice: [1]}}",
            "no point of the space makes a run; the first error: method.margin belongs",
        ),
        (BASE + "space: {method.memory: {uniform: [2, 3]}}", "must be at least 0 and below 1"),
        (BASE + SPACE + "search: grid", "is a range, and search=grid needs choice or grid"),
        (
            BASE + SPACE + "evaluation: {margin: [1]}",
            "changes what is trained: put method.margin under space",
        ),
        (BASE + SPACE + "evaluation: {method.margin: [1]}", "put method.margin under space"),
        (BASE + SPACE + "evaluation: {novel_shotz: [1]}", "did you mean novel_shots?"),
        (BASE + SPACE + "evaluation: {draws: [0]}", "evaluation.draws=0 must be at least 1"),
        (BASE + SPACE + "evaluation: {draws: []}", "must name different values"),
        (BASE + SPACE + "metric: knn/mcr@5", "is not measured for method.kind=pcn; measured are mca/base"),
        (BASE + SPACE + "mode: min", "grows with quality"),
        (
            BASE + SPACE + "settings: {training.patience: 0}",
            "is reported by no trial: the base has training.patience=0",
        ),
        (
            BASE + SPACE + "settings: {training.validate_every: 7}",
            "is reported by no trial: training.validate_every=7 is above the 6 epochs",
        ),
        (BASE + SPACE + "trails: 3", "did you mean trials?"),
        (BASE + SPACE + "trials: 0", "trials=0 must be at least 1"),
        (BASE + SPACE + "scheduler: {kind: asha, reduction: 1}", "scheduler.reduction=1 must be above 1"),
        (
            BASE + SPACE + "scheduler: {kind: pbt, quantile: 0.6}",
            "scheduler.quantile=0.6 must be above 0 and at most 0.5",
        ),
        (BASE + SPACE + "scheduler: pbt", "space.method.clusters may not change while a run trains"),
        (
            BASE + "space: {training.lr: {uniform: [1, 2]}}\nscheduler: pbt\nsearch: optuna",
            "search=optuna with scheduler.kind=pbt: all trials start together",
        ),
        (
            BASE + SPACE + "scheduler: hyperband\nsearch: {kind: import, class: 'a:B'}",
            "search=a:B with scheduler.kind=hyperband",
        ),
        (
            BASE + SPACE + "scheduler: hyperband\nconcurrency: 2",
            "concurrency=2 with scheduler.kind=hyperband",
        ),
        (
            BASE + "space: {training.lr: {uniform: [1, 2]}}\nscheduler: pbt\ntrials: 1\ninclude_base: false",
            "a population has two trials or more",
        ),
        (
            BASE + SPACE + "search: hyperopt",
            'search="hyperopt" must be random, grid, optuna or points or {kind: import, class:',
        ),
        (BASE + SPACE + "search: {kind: import}", "search.class is required and not set"),
        (
            BASE + SPACE + "search: {kind: import, class: optuna}",
            'search.class="optuna" must be text that matches',
        ),
        (BASE + SPACE + "minutes: -1", "minutes=-1 must be at least 0"),
        (BASE + SPACE + "trial_timeout_s: -1", "trial_timeout_s=-1 must be at least 0"),
        (BASE + SPACE + "resources: {gpus: -1}", "resources.gpus=-1 must be at least 0"),
        (BASE + SPACE + "resources: {workers: 2, gpus: 0.5}", "each worker of a trial uses a whole GPU"),
        ("base: nowhere.yaml\n" + SPACE, "nowhere.yaml is neither a YAML file nor"),
        (SPACE, "base must name a run's YAML file"),
        (BASE + "index: {vectors: x.npy}", "base belongs to sweeps of runs"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(tmp_path, text)
    assert any(word in str(caught.value) for word in words.split("|")), str(caught.value)
    assert "\n" not in str(caught.value)


POINTS = """
search: points
points:
  - {method.temperature: 2.0, run.seed: 1}
  - {method.kind: deep_knn, training.epochs: 9}
include_base: false
"""


def test_listed_points_are_tried_in_their_order(tmp_path: Path) -> None:
    config = load(tmp_path, BASE + POINTS)
    assert config.num_points == 2
    assert [config.point(number) for number in range(2)] == [
        {"method.temperature": 2.0, "run.seed": 1},
        {"method.kind": "deep_knn", "training.epochs": 9},
    ]
    assert config.keys == ("method.temperature", "run.seed", "method.kind", "training.epochs")
    assert config.max_epochs == 9
    assert config.trial_config(config.point(1)).method == DeepKNNConfig()
    assert parse_sweep(render_sweep(config), "again") == config
    tried: list[Trial] = []
    while (found := next_point(config, tried)) is not None:
        tried.append(Trial(number=len(tried), folder=tmp_path, point=found[1], draw=found[0]))
    assert [trial.point for trial in tried] == list(config.points)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: points\n", r"points is empty: search=points tries those that it lists"),
        (SPACE + POINTS, r"space belongs to the searches that draw points; search=points lists them"),
        (SPACE + "points: [{run.seed: 1}]\n", r"points lists the points to try, which needs search=points"),
        (
            "search: points\npoints: [{method.temprature: 1}]\n",
            r"points\[0\]\.method\.temprature: .*did you mean",
        ),
        ("search: points\npoints: [{data.dataset: x}]\n", r"points\[0\]\.data\.dataset is the same for all"),
        ("search: points\npoints: [{method.temperature: -1}]\n", r"no point of the space makes a run"),
    ],
)
def test_a_list_of_points_that_makes_no_sweep_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, BASE + text)
