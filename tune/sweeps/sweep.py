"""A sweep on Ray: actors that take one trial after another, a judge that stops some, a driver that only hands out.

The driver holds nothing that its folder does not: after a kill, `resume_sweep` reads the folder and goes on.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsl_dist.data.loader import describe_samples
from fsl_dist.training.launch import check_run
from fsl_dist.training.splits import split_run
from index.base.errors import ConfigError, FslDistError, RequestError
from index.base.extras import require
from index.base.files import Owner, write_atomic
from tune.plan import Plan
from tune.records import Result, Session, State, SweepFolder, Trial
from tune.search import check_search
from tune.space import show_point
from tune.sweep_file import SWEEP_FILE, check_new, render_sweep
from tune.sweep_settings import SweepSettings
from tune.sweeps.clock import Clock
from tune.sweeps.config import SweepConfig
from tune.sweeps.early_stopping import Judge
from tune.sweeps.progress import Standing, stand
from tune.sweeps.trial import check_point
from tune.sweeps.trial_actors import Crew

log = logging.getLogger(__name__)

Show = Callable[[Standing], None]


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
    """A new sweep checked against its data, with the data's version settled, before Ray or a trial starts.

    Raises RequestError for a folder that holds a sweep or a run, and for whatever its base, data or search cannot do.
    """
    folder = check_new(config)
    check_search(config)
    base = config.trial_config({}, str(folder))
    check_run(base)
    catalogue, _ = describe_samples(base.data)
    if not split_run(catalogue, base).has_stop:
        raise ConfigError(
            f"metric={base.stop_metric} is reported by no trial: data.dataset={base.data.dataset} has no val split beside its test "
            f"split, and data.holdout_fraction={base.data.holdout_fraction:g} holds nothing out of train (settings: "
            "data.holdout_fraction: 0.1)"
        )
    data = replace(config.base.data, version=config.base.data.version or catalogue.version)
    return replace(config, base=replace(config.base, data=data))


def num_cpus(config: SweepConfig) -> int:
    """CPU cores that the sweep asks of a Ray started for it: those of one trial, or of as many as it names."""
    return config.trial_base().num_cpus * max(config.concurrency, 1)


def check_resumable(config: SweepSettings, *, retry_failed: bool = False) -> None:
    """Raise FslDistError where more trials of a sweep failed than may, and are not to be tried again."""
    check_search(config)
    if not retry_failed:
        check_failures(config, Plan(config, SweepFolder(Path(config.dir)), check_point))


def drive(
    config: SweepConfig, *, show: Show, retry_failed: bool = False, started: float | None = None
) -> SweepSummary:
    """Run what is left of a sweep on the Ray cluster this process is connected to.

    started: `time.monotonic()` from which its wall time counts. Whoever drove this sweep before and still lives writes no more.
    Raises RequestError when the cluster cannot hold a trial, FslDistError when more trials failed than may.
    """
    require("ray")
    import ray

    concurrency = fit_concurrency(config, ray.cluster_resources())
    owner = Owner.claim(Path(config.dir))
    if not (owner.folder / SWEEP_FILE).is_file():
        write_atomic(owner.folder / SWEEP_FILE, render_sweep(config).encode())
    folder = SweepFolder(owner.folder)
    plan = Plan(config, folder, check_point)
    if retry_failed:
        plan.retry_failed()
    cores, cores_of_trial = float(ray.cluster_resources()["CPU"]), config.trial_base().num_cpus
    clock = Clock(config, folder, owner, cores, cores_of_trial, started)
    judge = ray.remote(num_cpus=0)(Judge).remote(config, owner)
    crew = Crew(config, judge)
    running: dict[Any, tuple[Any, Trial, float]] = {}
    deaths: dict[int, int] = {}
    try:
        while True:
            while len(running) < concurrency and not clock.is_over and not has_failed(config, plan):
                trial = plan.next()
                if trial is None:
                    break
                worker = crew.take()
                running[worker.run.remote(trial)] = worker, trial, time.monotonic()
            if not running:
                break
            since = {trial.number: at for _, trial, at in running.values()}
            show(stand(plan, since, folder.reports(), config.trial_base().stop_metric, clock.started))
            ready, _ = ray.wait(list(running), num_returns=1, timeout=2.0)
            for reference in ready:
                worker, trial, _ = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    deaths[trial.number] = deaths.get(trial.number, 0) + 1
                    log.warning("trial %04d: its worker is gone (%s)", trial.number, type(error).__name__)
                    if deaths[trial.number] <= config.base.workers.max_failures:
                        plan.put_back(trial)
                        continue
                    result = Result(state="failed", error=f"its worker died {deaths[trial.number]} times")
                else:
                    crew.give_back(worker, is_sound=result.state != "failed")
                owner.check()
                plan.finish(trial, result)
                clock.add(result)
                log.info("%s", _describe(plan, trial, result))
    finally:
        clock.write()
        crew.dismiss()
        ray.kill(judge)
    check_failures(config, plan)
    return summarise(config, plan, folder.sessions())


def fit_concurrency(config: SweepConfig, resources: dict[str, float]) -> int:
    """How many trials run at a time on a cluster with these `resources`; RequestError where not one does, or not as many as
    the sweep asks for."""
    base, gpus = config.trial_base(), config.resources.gpus
    needed, has = {"CPU": float(base.num_cpus), "GPU": float(gpus)}, {}
    for name, amount in needed.items():
        has[name] = resources.get(name, 0.0)
        if amount > has[name]:
            raise RequestError(
                f"a trial needs {amount:g} {name}s and the Ray cluster has {has[name]:g} "
                f"({'resources.gpus=0 trains on the CPU' if name == 'GPU' else 'fewer resources.workers or resources.cpus'})"
            )
    # A sum of binary fractions is a little off: ten trials of 0.1 GPU fit on one.
    fits = min(int(has[name] / amount + 1e-9) for name, amount in needed.items() if amount > 0)
    if config.concurrency > fits:
        raise RequestError(
            f"concurrency={config.concurrency} trials of {needed['CPU']:g} CPUs and {gpus:g} GPUs do not fit on the Ray cluster's "
            f"{has['CPU']:g} CPUs and {has['GPU']:g} GPUs; {fits} do (concurrency=0 takes as many as fit)"
        )
    return config.concurrency or fits


def summarise(config: SweepSettings, plan: Plan, sessions: list[Session]) -> SweepSummary:
    """How a sweep stands."""
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


def has_failed(config: SweepSettings, plan: Plan) -> bool:
    """Whether more trials failed than may."""
    return 0 <= config.max_failures < len(plan.with_state("failed"))


def check_failures(config: SweepSettings, plan: Plan) -> None:
    """Raise FslDistError where more trials failed than may."""
    if has_failed(config, plan):
        failed = plan.with_state("failed")
        last = failed[-1]
        assert last.result is not None
        raise FslDistError(
            f"{len(failed)} trials failed, more than max_failures={config.max_failures}; trial {last.number:04d}: "
            f"{last.result.error} (resumed with retry_failed=True, the sweep tries them again)"
        )


def _describe(plan: Plan, trial: Trial, result: Result) -> str:
    value = "" if result.value is None else f" {result.value:.4f}"
    ended = f"{result.state}: {result.error}" if result.error else result.state
    seconds = result.train_s + result.evaluate_s
    return (
        f"{plan.num_done} of {plan.num_wanted}: trial {trial.number:04d}{value} after {result.epochs} epochs, {seconds:.1f} s, "
        f"{ended} · {show_point(trial.point)}"
    )
