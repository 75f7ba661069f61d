"""A sweep of runs on Ray: the checks before it starts, and its summary.

Ray Tune runs it (`tune.sweeps.engine`), and has no state that is not in the sweep's folder: after a kill, a new Tuner
reads the folder and continues.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fsl_dist.data.loader import describe_samples
from fsl_dist.training.launch import check_run
from fsl_dist.training.ray.capacity import wait_for_capacity
from fsl_dist.training.splits import split_run
from index.base.checksums import encode_yaml
from index.base.errors import ConfigError, FslDistError
from index.base.extras import require
from index.base.files import Owner, write_atomic
from index.base.stopping import Stopped, answering_signals, number_of
from tune.plan import Plan
from tune.records import Session, State, SweepFolder
from tune.search import check_search
from tune.sweep_file import SWEEP_FILE, check_new, render_sweep
from tune.sweep_settings import SweepSettings
from tune.sweeps.clock import Clock
from tune.sweeps.config import SweepConfig
from tune.sweeps.early_stopping import StopRule
from tune.sweeps.engine.fitting import fit_concurrency
from tune.sweeps.engine.imported_search import check_imported, open_proposer
from tune.sweeps.progress import Show
from tune.sweeps.tracking import exporting, tracking_sweep
from tune.sweeps.trial import check_point

if TYPE_CHECKING:
    from ray.tune import ResultGrid


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """How a sweep ended."""

    dir: str
    metric: str
    finished: int
    stopped: int
    failed: int
    pruned: int
    best_trial: int | None
    best_value: float | None
    wall_s: float
    utilisation: float
    """time inside training and evaluation over the cores' wall time"""


def prepare_sweep(config: SweepConfig) -> SweepConfig:
    """Check a new sweep against its data, and settle the data's version, before Ray or a trial starts.

    Raises RequestError for a folder that contains a sweep or a run, and for an invalid base, data or search.
    """
    folder = check_new(config)
    check_search(config)
    check_imported(config)
    base = config.trial_config({}, str(folder))
    check_run(base)
    catalogue, _ = describe_samples(base.data)
    if not split_run(catalogue, base).has_stop:
        raise ConfigError(
            f"metric={base.stop_metric} is reported by no trial: data.dataset={base.data.dataset} has no val "
            f"split in addition to its test split, and data.holdout_fraction={base.data.holdout_fraction:g} holds "
            "nothing out of train (settings: data.holdout_fraction: 0.1)"
        )
    data = replace(config.base.data, version=config.base.data.version or catalogue.version)
    return replace(config, base=replace(config.base, data=data))


def num_cpus(config: SweepConfig) -> int:
    """CPU cores that the sweep needs from a Ray started for it:
    those of one trial, or of its fixed number of concurrent trials."""
    return config.trial_base().num_cpus * max(config.concurrency, 1)


def check_resumable(config: SweepSettings, *, retry_failed: bool = False) -> None:
    """Raise FslDistError where more trials of a sweep failed than may, and are not to be tried again."""
    check_search(config)
    check_imported(config)
    if not retry_failed:
        check_failures(config, Plan(config, SweepFolder(Path(config.dir)), check_point))


def drive(
    config: SweepConfig, *, show: Show, retry_failed: bool = False, started: float | None = None
) -> SweepSummary:
    """Run the rest of a sweep on the Ray cluster to which this process is connected (`run_tuner` without Tune's
    result)."""
    summary, _ = run_tuner(config, show=show, retry_failed=retry_failed, started=started)
    return summary


def run_tuner(
    config: SweepConfig, *, show: Show, retry_failed: bool = False, started: float | None = None
) -> "tuple[SweepSummary, ResultGrid]":
    """Run the rest of a sweep with `ray.tune.Tuner` on the Ray cluster to which this process is connected.

    Earlier drivers of this sweep are fenced off.

    Args:
        config: the sweep.
        show: called about once per second with the state of the sweep.
        retry_failed: run failed trials again, from their last checkpoints.
        started: `time.monotonic()` from which the wall time counts; None: now.

    Returns:
        The summary of the sweep, and Tune's result of the trials that ran in this call.

    Raises:
        RequestError: the cluster is too small for a trial (CapacityError), or no point of the space is valid.
        FslDistError: more trials failed than allowed.
        Stopped: Ctrl-C or SIGTERM; each running trial was stopped with a checkpoint, within its `training.grace_s`.
    """
    require("ray")
    import ray

    from tune.sweeps.engine.driver import Driver
    from tune.sweeps.engine.tuner import fit

    def find_resources() -> dict[str, float]:
        found = ray.cluster_resources()
        fit_concurrency(config, found)
        return found

    resources = wait_for_capacity(find_resources)
    propose = open_proposer(config)
    owner = Owner.claim(Path(config.dir))
    if not (owner.folder / SWEEP_FILE).is_file():
        write_atomic(owner.folder / SWEEP_FILE, encode_yaml(render_sweep(config)))
    folder = SweepFolder(owner.folder)
    plan = Plan(config, folder, check_point, propose)
    if retry_failed:
        plan.retry_failed()
    clock = Clock(config, folder, owner, resources["CPU"], config.trial_base().num_cpus, started)
    grace_s = config.trial_base().training.grace_s
    with tracking_sweep(config) as facts, exporting(config, show) as show_and_export:
        try:
            with answering_signals(
                grace_s, "a checkpoint of each trial", describe=lambda: describe_stopped(config, plan)
            ) as stop:
                driver = Driver(config, owner, plan, StopRule(config, owner), clock, show_and_export, stop)
                grid = fit(driver)
            if stop.is_set:
                raise Stopped(number=stop.number)
        except KeyboardInterrupt as error:
            raise Stopped(describe_stopped(config, plan), number_of(error)) from None
        finally:
            clock.write()
        summary = summarise(config, plan, folder.sessions())
        facts.update({name: value for name, value in asdict(summary).items() if value is not None})
    check_failures(config, plan)
    return summary, grid


def describe_stopped(config: SweepSettings, plan: Plan) -> str:
    """What is kept of a stopped sweep, and how to continue it: one line."""
    return (
        f"stopped: {plan.num_done} of {plan.num_wanted} trials of {config.dir} have ended, and running ones keep "
        f"their last checkpoints (the sweep with resume=True continues)"
    )


def summarise(config: SweepSettings, plan: Plan, sessions: list[Session]) -> SweepSummary:
    """Summarise the state of a sweep."""
    best = plan.best()
    states: tuple[State, ...] = ("finished", "stopped", "failed", "pruned")
    finished, stopped, failed, pruned = (len(plan.with_state(state)) for state in states)
    wall_s = sum(session.wall_s for session in sessions)
    available = sum(session.wall_s * session.cores for session in sessions)
    busy = sum(session.busy_core_s for session in sessions)
    return SweepSummary(
        dir=config.dir,
        metric=config.value_name,
        finished=finished,
        stopped=stopped,
        failed=failed,
        pruned=pruned,
        best_trial=best.number if best else None,
        best_value=best.result.value if best and best.result else None,
        wall_s=round(wall_s, 1),
        utilisation=round(busy / available, 3) if available else 0.0,
    )


def check_failures(config: SweepSettings, plan: Plan) -> None:
    """Raise FslDistError where more trials failed than may."""
    if plan.has_failed:
        failed = plan.with_state("failed")
        last = failed[-1]
        assert last.result is not None
        raise FslDistError(
            f"{len(failed)} trials failed, more than max_failures={config.max_failures}; trial {last.number:04d}: "
            f"{last.result.error} (resumed with retry_failed=True, the sweep tries them again)"
        )
