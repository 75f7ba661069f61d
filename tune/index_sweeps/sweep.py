"""A sweep of indexes: builds are made and measured sequentially in this process,
so that nothing disturbs a measurement.

The folder, the order of the points and the time of writing are those of sweeps of runs.
"""

import logging
import os
import time
from pathlib import Path

from index.base.checksums import encode_yaml
from index.base.files import Owner, write_atomic
from index.runtime import faiss
from tune.index_sweeps.config import IndexSweepConfig
from tune.index_sweeps.trial import check_point, read_truth, run_trial, shape_of, write_labels
from tune.plan import Plan
from tune.records import Result, SweepFolder, Trial
from tune.search import check_search
from tune.space import show_point
from tune.sweep_file import SWEEP_FILE, check_new, render_sweep
from tune.sweeps.clock import Clock
from tune.sweeps.progress import Show, stand
from tune.sweeps.sweep import SweepSummary, check_failures, summarise

log = logging.getLogger(__name__)


def prepare_index_sweep(config: IndexSweepConfig) -> IndexSweepConfig:
    """Check a new sweep against its vectors before anything is built.

    Raises RequestError for a folder that contains a sweep or a run, and for an invalid base, vectors or search.
    """
    folder = check_new(config)
    check_search(config)
    check_point(config, {}, folder)
    return config


def drive_index_sweep(
    config: IndexSweepConfig,
    *,
    show: Show,
    retry_failed: bool = False,
    started: float | None = None,
) -> SweepSummary:
    """Run the rest of a sweep, in this process. Earlier drivers of this sweep are fenced off.

    started: `time.monotonic()` from which its wall time counts. Raises RequestError for vectors that no index accepts,
    FslDistError if more trials failed than allowed.
    """
    owner = Owner.claim(Path(config.dir))
    if not (owner.folder / SWEEP_FILE).is_file():
        write_atomic(owner.folder / SWEEP_FILE, encode_yaml(render_sweep(config)))
    shape_of(config.index)  # a file that was deleted since is an error, and not a reason to prune all points
    read_truth(config, owner.folder)
    write_labels(config, owner.folder)
    folder = SweepFolder(owner.folder)
    plan = Plan(config, folder, check_point)
    if retry_failed:
        plan.retry_failed()
    threads = faiss.omp_get_max_threads()
    clock = Clock(config, folder, owner, threads, threads, started)
    load = 0.0
    try:
        while not clock.is_over and not plan.has_failed:
            trial = plan.next()
            if trial is None:
                break
            show(stand(plan, {trial.number: time.monotonic()}, [], config.metric, clock.started))
            result = run_trial(config, trial, owner)
            load = max(load, os.getloadavg()[0])
            plan.finish(trial, result)
            clock.add(result)
            log.info("%s", _describe(config, plan, trial, result))
    finally:
        clock.write()
    check_failures(config, plan)
    if load > threads + 1:
        log.warning(
            "other processes were active here (load %.1f): milliseconds are overestimated, recall is not affected",
            load,
        )
    return summarise(config, plan, folder.sessions())


def _describe(config: IndexSweepConfig, plan: Plan, trial: Trial, result: Result) -> str:
    value = "nothing counts" if result.value is None else f"{config.metric} {result.value:.4g}"
    ended = f"{result.state}: {result.error}" if result.error else value
    return (
        f"{plan.num_done} of {plan.num_wanted}: trial {trial.number:04d}, built in {result.train_s:.1f} s, measured in "
        f"{result.evaluate_s:.1f} s, {ended} · {show_point(trial.point)}"
    )
