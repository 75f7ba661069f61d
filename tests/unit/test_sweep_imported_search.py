"""Points proposed by a searcher that the sweep names by its import path: HyperOpt's, and ones written here."""

import logging
import math
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from fsl_dist.config import RunConfig
from fsl_dist.methods.pcn import PCNConfig
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.training.config import TrainingConfig
from index.base.errors import ConfigError, RequestError
from tune.plan import NotYet, Plan
from tune.records import Result, SweepFolder
from tune.space import Knob
from tune.sweep_settings import ImportedSearch
from tune.sweeps.config import SweepConfig
from tune.sweeps.engine.imported_search import check_imported, open_proposer

BASE = RunConfig(
    method=PCNConfig(), training=TrainingConfig(patience=3), evaluation=EvaluationConfig(delta_tau=(0.0,))
)
SPACE = {
    "method.temperature": Knob(loguniform=(0.1, 10.0)),
    "method.clusters": Knob(randint=(1, 10)),
    "method.memory": Knob(uniform=(0.0, 0.9)),
}
LISTS = {
    "training.lr_milestones": Knob(choice=((1,), (1, 3))),
    "training.schedule": Knob(grid=("milestones",)),
}


class Recorder(Searcher):
    """Proposes the middle of each range, waits after `waits_at` proposals, ends after `ends_at`, keeps what it hears."""

    heard: list[tuple]

    def __init__(self, waits_at: int = 99, ends_at: int = 99, extra: bool = False) -> None:
        super().__init__()
        self.waits_at, self.ends_at, self.extra = waits_at, ends_at, extra
        self.asked = 0
        self.heard = []

    def set_search_properties(self, metric: str, mode: str, config: dict, **spec: object) -> bool:
        self.metric_, self.mode_, self.space = metric, mode, config
        return True

    def suggest(self, trial_id: str) -> dict | str | None:
        if self.asked == self.ends_at:
            return self.FINISHED
        if self.asked == self.waits_at and not self.heard:
            return None
        self.asked += 1
        point = {key: domain.sample() for key, domain in self.space.items()}
        return {**point, "more": 1} if self.extra else point

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.heard.append((trial_id, result and result["value"], error))


class Remembering(Recorder):
    """One that accepts results of points that it did not propose."""

    def add_evaluated_point(
        self, parameters: dict, value: float, error: bool = False, **rest: object
    ) -> None:
        self.heard.append((parameters, value, error))


class Stubborn(Recorder):
    """One that has a space of its own."""

    def set_search_properties(self, metric: str, mode: str, config: dict, **spec: object) -> bool:
        return False


def sweep(folder: Path, search: ImportedSearch, **settings: object) -> SweepConfig:
    given = {"dir": str(folder), "base": BASE, "trials": 6, "search": search, "space": SPACE, **settings}
    return SweepConfig(**given)  # type: ignore[arg-type]


def own(name: str, **settings: bool | int) -> ImportedSearch:
    return ImportedSearch(class_=f"{__name__}:{name}", settings=settings)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of this file can be imported by the name that they know of themselves."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _module())


def _module() -> object:
    import types

    module = types.ModuleType(__name__)
    module.__dict__.update(Recorder=Recorder, Remembering=Remembering, Stubborn=Stubborn)
    return module


def accept(config: SweepConfig, point: object, folder: Path) -> None:
    """Every point makes a run."""


def run_all(plan: Plan, most: int = 99) -> list[dict]:
    """Run a plan; a trial's value is its temperature, and the third one fails."""
    points = []
    while len(points) < most and (trial := plan.next()) is not None:
        points.append(trial.point)
        is_bad = trial.draw == 2
        value = float(trial.point.get("method.temperature", 0.0))
        plan.finish(trial, Result(state="failed" if is_bad else "finished", value=None if is_bad else value))
    return points


def check_points(points: list[dict]) -> None:
    for point in points:
        assert 0.1 <= point["method.temperature"] <= 10
        assert point["method.clusters"] in range(1, 11)
        assert type(point["method.clusters"]) is int
        assert 0 <= point["method.memory"] <= 0.9


def test_hyperopt_proposes_points_of_the_space_and_looks_where_values_are_large(tmp_path: Path) -> None:
    pytest.importorskip("hyperopt")
    search = ImportedSearch(
        class_="ray.tune.search.hyperopt:HyperOptSearch",
        settings={"n_initial_points": 10, "random_state_seed": 0},
    )
    config = sweep(tmp_path, search, trials=40, include_base=False)
    points = run_all(Plan(config, SweepFolder(tmp_path), accept, open_proposer(config)))
    assert len(points) == 40
    check_points(points)
    found = [point["method.temperature"] for point in points]
    assert sum(found[10:]) / 30 > 1.2 * 9.9 / math.log(100)  # the mean of draws that look at nothing


@pytest.mark.parametrize("name", ["Recorder", "Remembering"])
def test_a_searcher_hears_how_its_trials_ended_also_after_a_kill(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = sweep(tmp_path, own(name))
    proposer = open_proposer(config)
    points = run_all(Plan(config, SweepFolder(tmp_path), accept, proposer), most=5)
    searcher = proposer._searcher  # type: ignore[attr-defined]
    assert (searcher.metric_, searcher.mode_) == ("value", "max")
    assert points[0] == {}, "the base is not the searcher's"
    check_points(points[1:])
    values = [point["method.temperature"] for point in points[1:]]
    assert searcher.heard == [("0000", values[0], False), ("0001", values[1], False), ("0002", None, True)]
    again = open_proposer(config)
    with caplog.at_level(logging.WARNING):
        run_all(Plan(config, SweepFolder(tmp_path), accept, again), most=1)
    told = again._searcher.heard  # type: ignore[attr-defined]
    if name == "Remembering":
        assert told == [(points[i + 1], values[i], False) for i in (0, 1, 3)]
    else:
        assert told == []
        assert "restarts without 3 trials that ended before" in caplog.text
    assert [trial.draw for trial in SweepFolder(tmp_path).trials()] == [-1, 0, 1, 2, 3, 4]


def test_a_searcher_may_wait_for_a_trial_or_end_the_sweep(tmp_path: Path) -> None:
    config = sweep(tmp_path, own("Recorder", waits_at=2, ends_at=3), include_base=False)
    plan = Plan(config, SweepFolder(tmp_path), accept, open_proposer(config))
    first, second = plan.next(), plan.next()
    assert first is not None
    assert second is not None
    with pytest.raises(NotYet):
        plan.next()
    plan.finish(first, Result(state="finished", value=1.0))
    assert plan.next() is not None
    assert plan.next() is None


def test_options_that_are_lists_come_back_as_lists(tmp_path: Path) -> None:
    config = sweep(tmp_path, own("Recorder"), space=LISTS, include_base=False)
    points = run_all(Plan(config, SweepFolder(tmp_path), accept, open_proposer(config)))
    assert {point["training.lr_milestones"] for point in points} <= {(1,), (1, 3)}
    assert {point["training.schedule"] for point in points} == {"milestones"}


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (ImportedSearch(class_="nowhere.at_all:Search"), "cannot be imported: ModuleNotFoundError"),
        (ImportedSearch(class_="ray.tune.search:Nothing"), "cannot be imported: AttributeError"),
        (ImportedSearch(class_="pathlib:Path"), "is not a ray.tune.search.Searcher"),
        (own("Recorder", wait=1), "cannot be made: TypeError"),
        (ImportedSearch(class_="ray.tune.search.nevergrad:NevergradSearch"), "cannot be made: "),
        (own("Stubborn"), "accepts no space, metric or mode from the sweep"),
    ],
)
def test_a_searcher_that_cannot_be_had_is_refused_in_one_line(
    tmp_path: Path, search: ImportedSearch, words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_imported(sweep(tmp_path, search))
    assert words in str(refused.value)
    assert str(refused.value).startswith(f"search.class={search.class_}")
    assert "\n" not in str(refused.value)


def test_a_searcher_that_proposes_other_keys_ends_the_sweep(tmp_path: Path) -> None:
    config = sweep(tmp_path, own("Recorder", extra=True), include_base=False)
    with pytest.raises(RequestError, match=r"proposed the keys method.clusters, method.memory, method.temp"):
        Plan(config, SweepFolder(tmp_path), accept, open_proposer(config)).next()
