"""Which trial comes next, what a folder keeps, and that cutting a sweep off anywhere changes no point."""

import json
from pathlib import Path

import pytest

from fsl_dist.config import RunConfig
from fsl_dist.errors import StaleOwnerError
from fsl_dist.methods.pcn import PCNConfig
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.training.config import TrainingConfig
from index.base.errors import RequestError
from index.base.files import Owner
from tune.plan import Plan
from tune.records import RESULT_FILE, Result, SweepFolder
from tune.search import next_point
from tune.space import Knob, Point
from tune.sweeps.config import Resources, SweepConfig
from tune.sweeps.early_stopping import StopRule
from tune.sweeps.sweep import fit_concurrency

BASE = RunConfig(
    method=PCNConfig(), training=TrainingConfig(patience=3), evaluation=EvaluationConfig(delta_tau=(0.0,))
)
SPACE = {"method.temperature": Knob(loguniform=(0.1, 10.0)), "method.clusters": Knob(choice=(1, 5, 10))}


def sweep(folder: Path, **settings: object) -> SweepConfig:
    return SweepConfig(**{"dir": str(folder), "base": BASE, "space": SPACE, "trials": 6, **settings})  # type: ignore[arg-type]


def accept(config: SweepConfig, point: Point, folder: Path) -> None:
    """A check that refuses five clusters."""
    if point.get("method.clusters") == 5:
        raise RequestError("five is refused")


def run_all(config: SweepConfig, *, cut_after: int = 1000) -> dict[int, Point]:
    """Run a plan with values that are functions of the point, cutting it off after some trials; the points by number."""
    plan = Plan(config, SweepFolder(Path(config.dir)), accept)
    for _ in range(cut_after):
        trial = plan.next()
        if trial is None:
            break
        plan.finish(trial, Result(state="finished", value=float(trial.point.get("method.temperature", 0.5))))
    else:
        plan.next()  # started, and cut off
    return {number: trial.point for number, trial in plan.trials.items()}


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_plan_cut_off_anywhere_goes_on_with_the_same_points(tmp_path: Path, search: str) -> None:
    if search == "optuna":
        pytest.importorskip("optuna")
    whole = run_all(sweep(tmp_path / "whole", search=search))
    config = sweep(tmp_path / "cut", search=search)
    for cut_after in (1, 1, 2):
        run_all(config, cut_after=cut_after)
    assert run_all(config) == whole
    states = [t.result.state for t in SweepFolder(tmp_path / "cut").trials() if t.result]
    assert states.count("finished") == 7
    assert whole[0] == {}
    assert states.count("pruned") == len(whole) - 7
    assert all(
        t.point["method.clusters"] == 5
        for t in SweepFolder(tmp_path / "cut").trials()
        if t.result.state == "pruned"
    )


def test_optuna_looks_where_values_are_large(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    config = sweep(tmp_path / "s", search="optuna", trials=40, include_base=False)
    points = [float(point["method.temperature"]) for point in run_all(config).values()]
    assert sum(points[-10:]) / 10 > 2 * sum(points[:10]) / 10


def test_a_grid_ends_and_numbers_start_at_one_without_the_base(tmp_path: Path) -> None:
    space = {"method.clusters": Knob(grid=(1, 5, 10)), "method.memory": Knob(choice=(0.0, 0.5))}
    points = run_all(sweep(tmp_path, search="grid", space=space, include_base=False, trials=100))
    assert list(points) == [1, 2, 3, 4, 5, 6]
    assert points[6] == {"method.clusters": 10, "method.memory": 0.5}


def test_a_space_that_the_data_refuses_ends_the_sweep(tmp_path: Path) -> None:
    config = sweep(tmp_path, space={"method.clusters": Knob(choice=(5,))}, include_base=False)
    with pytest.raises(
        RequestError, match="200 consecutive points make no trial; the last one: five is refused"
    ):
        Plan(config, SweepFolder(tmp_path), accept).next()


def test_failed_trials_are_tried_again_when_asked(tmp_path: Path) -> None:
    config = sweep(tmp_path, trials=2)
    plan = Plan(config, SweepFolder(tmp_path), accept)
    first = plan.next()
    assert first is not None
    plan.finish(first, Result(state="failed", error="a loss is not finite"))
    again = Plan(config, SweepFolder(tmp_path), accept)
    assert [trial.number for trial in again.with_state("failed")] == [0]
    again.retry_failed()
    assert not (first.folder / RESULT_FILE).exists()
    taken = again.next()
    assert taken is not None
    assert taken.number == 0


def test_random_points_do_not_look_at_trials(tmp_path: Path) -> None:
    config = sweep(tmp_path)
    folder = SweepFolder(tmp_path)
    trials = [
        folder.start(number, number - 1, {} if number == 0 else config.point(number - 1))
        for number in range(4)
    ]
    assert next_point(config, trials) == (3, config.point(3))


def test_reports_are_kept_and_answered_alike_after_a_kill(tmp_path: Path) -> None:
    config = sweep(tmp_path)
    judge = StopRule(config, Owner.claim(tmp_path))
    assert judge.report(1, 1, 0.5) is False
    path = tmp_path / "reports.jsonl"
    path.write_text(path.read_text() + '{"trial": 2, "epo')
    owner = Owner.claim(tmp_path)
    again = StopRule(config, owner)
    assert again.report(1, 1, 0.5) is False
    again.report(2, 1, 0.25)
    assert [json.loads(line)["trial"] for line in path.read_text().splitlines()] == [1, 2]
    with pytest.raises(StaleOwnerError):
        judge.report(3, 1, 0.1)


def test_trials_are_fitted_to_the_cluster(tmp_path: Path) -> None:
    assert fit_concurrency(sweep(tmp_path), {"CPU": 4.0}) == 4
    assert fit_concurrency(sweep(tmp_path, resources=Resources(cpus=2)), {"CPU": 5.0}) == 2
    assert fit_concurrency(sweep(tmp_path, resources=Resources(gpus=0.1)), {"CPU": 16.0, "GPU": 1.0}) == 10
    with pytest.raises(
        RequestError, match=r"a trial needs 2 GPUs and the Ray cluster has 1 \(resources.gpus=0 trains"
    ):
        fit_concurrency(sweep(tmp_path, resources=Resources(gpus=2)), {"CPU": 4.0, "GPU": 1.0})
    with pytest.raises(RequestError, match=r"concurrency=3 trials .* do not fit .* 2 do"):
        fit_concurrency(sweep(tmp_path, concurrency=3), {"CPU": 2.0})


def test_a_trial_that_never_started_is_taken_back_and_comes_again(tmp_path: Path) -> None:
    plan = Plan(sweep(tmp_path), SweepFolder(tmp_path), lambda *_: None)
    first, second = plan.next(), plan.next()
    assert first is not None
    assert second is not None
    plan.forget(first)
    assert [trial.number for trial in SweepFolder(tmp_path).trials()] == [0, 1], "only the newest can be"
    plan.forget(second)
    assert [trial.number for trial in SweepFolder(tmp_path).trials()] == [0]
    again = plan.next()
    assert again is not None
    assert (again.number, again.point) == (second.number, second.point)
