"""The state that the parts called by Tune share: the sweep's plan, its records, the running trials, and the clock."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from fsl_dist.config import CONFIG_FILE
from index.base.files import Owner
from index.base.stopping import StopRequest
from tune.plan import NotYet, Plan
from tune.records import Result, Trial
from tune.space import Point, show_point
from tune.sweeps.clock import Clock
from tune.sweeps.config import SweepConfig
from tune.sweeps.early_stopping import StopRule
from tune.sweeps.engine.fitting import count_fitting
from tune.sweeps.progress import Show, stand
from tune.sweeps.schedulers import HyperBand, Population
from tune.sweeps.trial import progress_of

log = logging.getLogger(__name__)

_SHOW_EVERY_S = 1.0


@dataclass(slots=True)
class _UnderWay:
    """A trial that was started."""

    trial: Trial
    since: float
    """`time.monotonic()` when its actor started it; before that, when it was submitted"""
    heard: float
    """time of its last report, or of its start"""
    worked_s: float = 0.0
    """seconds inside training before it was last paused"""
    has_started: bool = False
    """whether an actor has taken it, now or before"""
    is_told: bool = False
    """whether it was asked to stop"""
    ends: Result | None = None
    """the result that counts once its actor, which is being killed, has ended"""


@dataclass(slots=True)
class Driver:
    """One process's part in a sweep; everything that must outlast the process is in the sweep's folder."""

    config: SweepConfig
    owner: Owner
    plan: Plan
    stop_rule: StopRule
    clock: Clock
    show: Show
    stop: StopRequest = field(default_factory=StopRequest)
    """request to stop the sweep, with a checkpoint of each running trial"""
    under_way: dict[int, _UnderWay] = field(default_factory=dict)
    """trials that were submitted and have not ended: running, waiting for an actor, or waiting at a checkpoint"""
    _running: dict[int, Any] = field(default_factory=dict)
    """trial → Ray's handle of the actor that it runs in"""
    _deaths: dict[int, int] = field(default_factory=dict)
    _has_no_more: bool = False
    _shown: float = 0.0
    _asked: int = 0
    """number of trials with several workers in the last request to the autoscaler"""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # Tune pickles its arguments to restore an experiment; a sweep is restored from its folder instead.
        return object, ()

    @property
    def base_trial(self) -> int:
        """Number of the trial that is the unchanged base, which nothing stops or changes; −1 if there is none."""
        return 0 if self.config.include_base else -1

    @property
    def is_finished(self) -> bool:
        """Whether no more trials are submitted; running ones continue."""
        if self.clock.is_over or self.plan.has_failed or self.stop.is_set:
            return True
        return self._has_no_more and not self.plan.has_cut_off

    def next_trial(self) -> Trial | None:
        """The trial to submit now; None if there is none, or if the maximum number is running."""
        if self.is_finished or self.is_full():
            return None
        self.owner.check()
        try:
            trial = self.plan.next()
        except NotYet:
            self._has_no_more = not self.under_way  # nothing will end that it could wait for
            return None
        if trial is None:
            self._has_no_more = True
            return None
        now = time.monotonic()
        has_started = (trial.folder / CONFIG_FILE).is_file()
        self.under_way[trial.number] = _UnderWay(trial, now, now, has_started=has_started)
        return trial

    def is_full(self) -> bool:
        """Whether the maximum number of trials is running.

        One more is submitted than currently fits on the cluster: its placement group makes a request to the
        autoscaler. Trials of several workers reserve nothing themselves, so `look` makes the request. A search that
        depends on the results of trials submits no additional one if only one can run.
        """
        if isinstance(self.config.scheduler, HyperBand | Population):
            return False
        if self.config.concurrency:
            return len(self.under_way) >= self.config.concurrency
        fitting = max(count_fitting(self.config, ray.cluster_resources()), 1)
        looks_ahead = self.config.search in ("random", "grid", "points") or fitting > 1
        return len(self.under_way) >= fitting + (looks_ahead and not self.config.trial_base().uses_ray)

    def started(self, number: int) -> None:
        """An actor has taken the trial."""
        one = self.under_way[number]
        one.has_started = True
        one.worked_s += one.heard - one.since
        one.since = one.heard = time.monotonic()

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Whether the trial stops after this validation."""
        one = self.under_way[number]
        one.heard = time.monotonic()
        return self.stop_rule.report(number, epoch, value, len(one.trial.changes))

    def end_run(self, number: int, actor: Any) -> None:
        """Have the trial stop at the validation that it waits at, or at its next one."""
        one = self.under_way[number]
        if not one.is_told:
            one.is_told = True
            actor.end_run.remote()

    def change(self, number: int, donor: int, epoch: int, point: Point) -> Trial:
        """Let a trial continue from the network that `donor` had after `epoch` epochs, at another point."""
        self.owner.check()
        trial = self.plan.change(self.under_way[number].trial, donor, epoch, point)
        self.under_way[number].trial = trial
        log.info(
            "trial %04d continues from trial %04d at epoch %d · %s", number, donor, epoch, show_point(point)
        )
        return trial

    def ended(self, number: int, result: Result) -> None:
        """Write down how a trial ended."""
        one = self.under_way.pop(number)
        trial, result = one.trial, replace(result, train_s=result.train_s + one.worked_s)
        self.owner.check()
        self.plan.finish(trial, result)
        self.clock.add(result)
        log.info("%s", _describe(self.plan, trial, result))

    def left(self, number: int) -> None:
        """Handle a trial that stopped on request with a checkpoint, from which the resumed sweep continues it."""
        self.under_way.pop(number, None)

    def died(self, number: int) -> None:
        """Handle the loss of a trial's actor: the trial is retried, or has failed, unless the driver ended it."""
        one = self.under_way.get(number)
        if one is None:
            return  # it failed, and has reported that
        if one.ends is not None:
            self.ended(number, one.ends)
            return
        self.owner.check()
        self._deaths[number] = self._deaths.get(number, 0) + 1
        log.warning("trial %04d: its worker has died", number)
        if self._deaths[number] <= self.config.base.workers.max_failures:
            del self.under_way[number]
            self.plan.put_back(one.trial)
        else:
            self.ended(number, Result(state="failed", error=f"its worker died {self._deaths[number]} times"))

    def stopped_waiting(self, number: int) -> None:
        """Handle a trial that waited at a checkpoint and will not continue."""
        if number in self.under_way and not self.stop.is_set:
            self.ended(number, progress_of(self.under_way[number].trial, "stopped"))

    @property
    def must_end(self) -> bool:
        """Whether Tune ends now: there is a stop request, or the minutes are used up, and no trial is running."""
        return self.clock.is_overdue or ((self.clock.is_due or self.stop.is_set) and not self._running)

    def look(self, running: Mapping[int, Any]) -> None:
        """Show the state of the sweep, and end what takes too long; Tune calls it several times per second.

        running: trial → Ray's handle of its actor.
        """
        self._running = {number: actor for number, actor in running.items() if number in self.under_way}
        now, limit_s = time.monotonic(), self.config.trial_timeout_s
        for number, actor in self._running.items():
            one = self.under_way[number]
            if one.ends is not None:
                continue
            if self.clock.is_overdue:
                one.ends = progress_of(one.trial, "stopped")
            elif self.clock.is_due:
                self.end_run(number, actor)
            elif 0 < limit_s < now - one.heard:
                error = f"no validation and no end within trial_timeout_s={limit_s:g} seconds; its process was ended"
                one.ends = Result(state="failed", error=error)
            if one.ends is not None:
                ray.kill(actor)
        if now - self._shown >= _SHOW_EVERY_S:
            self._shown = now
            self.clock.see(float(ray.cluster_resources().get("CPU", 0.0)))
            self._ask_autoscaler()
            since = {number: self.under_way[number].since for number in self._running}
            self.show(
                stand(self.plan, since, self.stop_rule.reports, self.config.value_name, self.clock.started)
            )

    def _ask_autoscaler(self, *, is_over: bool = False) -> None:
        """Request a cluster for one more trial of several workers than are running, while there are more to start.

        A cluster without an autoscaler ignores it. A request is valid until the next one.
        """
        base = self.config.trial_base()
        if not base.uses_ray or isinstance(self.config.scheduler, HyperBand | Population):
            return
        num_more = 0 if self.is_finished or 0 < self.config.concurrency <= len(self.under_way) else 1
        num_trials = 0 if is_over else len(self.under_way) + num_more
        if num_trials != self._asked:
            from ray.autoscaler.sdk import request_resources

            worker = {"CPU": base.workers.cpus} | ({"GPU": 1} if self.config.resources.gpus else {})
            miners = [{"CPU": base.mining.cpus}] * base.mining.actors if base.mining.is_beside else []
            request_resources(bundles=([worker] * base.workers.num + miners) * num_trials)
            self._asked = num_trials

    def release(self) -> None:
        """Withdraw the request to the autoscaler."""
        self._ask_autoscaler(is_over=True)

    def close(self) -> None:
        """Record as stopped the trials that were running when the minutes were used up,
        and forget those that never started."""
        self.owner.check()
        for number, one in sorted(self.under_way.items(), reverse=True):
            result = one.ends or progress_of(one.trial, "stopped")
            if result.value is not None and self.clock.is_due:
                self.ended(number, result)
            elif not one.has_started:
                self.plan.forget(one.trial)


def _describe(plan: Plan, trial: Trial, result: Result) -> str:
    value = "" if result.value is None else f" {result.value:.4f}"
    ended = f"{result.state}: {result.error}" if result.error else result.state
    seconds = result.train_s + result.evaluate_s
    return (
        f"{plan.num_done} of {plan.num_wanted}: trial {trial.number:04d}{value} after {result.epochs} epochs, "
        f"{seconds:.1f} s, {ended} · {show_point(trial.point)}"
    )
