"""The next trial: interrupted ones, the base itself, then new points, except for invalid ones."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from index.base.errors import RequestError
from index.base.files import remove_file, remove_folder
from tune.records import RESULT_FILE, Result, SweepFolder, Trial
from tune.search import next_point
from tune.space import Point
from tune.sweep_settings import SweepSettings

Proposer = Callable[[SweepSettings, Sequence[Trial]], tuple[int, Point] | None]
"""(sweep, its trials so far) → (number of the draw, the next point to try); None if there is none.
Raises NotYet if the point depends on a running trial."""


class NotYet(Exception):
    """No point can be proposed before a trial under way has ended."""


class Plan:
    """The trials in a sweep's folder, and those that it has yet to start."""

    def __init__(
        self,
        config: SweepSettings,
        folder: SweepFolder,
        check: Callable[..., object],
        propose: Proposer = next_point,
    ) -> None:
        """`check(config, point, folder)` raises RequestError for an invalid point; `propose` returns the next point."""
        self.config = config
        self.folder = folder
        self.trials = {trial.number: trial for trial in folder.trials()}
        self._check = check
        self._propose = propose
        self._cut_off = [trial for trial in self.trials.values() if trial.result is None]

    def next(self) -> Trial | None:
        """The trial to run now; None if there is none left to start. Pruned points are recorded."""
        refusal, most_pruned = "", self.config.most_pruned
        for _ in range(most_pruned):
            trial = self._cut_off.pop(0) if self._cut_off else self._new_trial()
            if trial is None:
                return None
            self.trials[trial.number] = trial
            try:
                self._check(self.config, trial.point, trial.folder)
            except RequestError as error:
                refusal = str(error)
                self.finish(trial, Result(state="pruned", error=refusal))
            else:
                return trial
        raise RequestError(f"{most_pruned} consecutive points make no trial; the last one: {refusal}")

    def finish(self, trial: Trial, result: Result) -> None:
        """Write down how a trial ended."""
        self.trials[trial.number] = self.folder.finish(trial, result)

    def forget(self, trial: Trial) -> None:
        """Remove the newest trial, which has not started; the same point will be proposed again."""
        if trial.number == max(self.trials):
            remove_folder(trial.folder)
            del self.trials[trial.number]

    def put_back(self, trial: Trial) -> None:
        """Run a trial again, next, from its last checkpoint."""
        self._cut_off.insert(0, trial)

    @property
    def has_cut_off(self) -> bool:
        """Whether a trial waits that was under way before."""
        return bool(self._cut_off)

    def change(self, trial: Trial, donor: int, epoch: int, point: Point) -> Trial:
        """Record that a trial continues with the network of trial `donor` at another point (`SweepFolder.change`)."""
        self.trials[trial.number] = self.folder.change(trial, donor, epoch, point)
        return self.trials[trial.number]

    def retry_failed(self) -> None:
        """Run all failed trials again, from their last checkpoints."""
        for trial in self.with_state("failed"):
            remove_file(trial.folder / RESULT_FILE)
        self.trials = {trial.number: trial for trial in self.folder.trials()}
        self._cut_off = [trial for trial in self.trials.values() if trial.result is None]

    def with_state(self, state: str) -> list[Trial]:
        """All trials that ended so."""
        return [trial for trial in self.trials.values() if trial.result and trial.result.state == state]

    @property
    def has_failed(self) -> bool:
        """Whether more trials failed than may."""
        return 0 <= self.config.max_failures < len(self.with_state("failed"))

    @property
    def num_wanted(self) -> int:
        """Number of trials of the sweep if none of its points is pruned and its time suffices."""
        return self.config.num_points + self.config.include_base

    @property
    def num_done(self) -> int:
        """Trials that ended, the pruned ones left out."""
        return sum(
            trial.result is not None and trial.result.state != "pruned" for trial in self.trials.values()
        )

    def best(self) -> Trial | None:
        """The trial of the best value; of equal ones the first."""
        return best_of(self.trials.values(), self.config.mode)

    def _new_trial(self) -> Trial | None:
        if self.config.include_base and 0 not in self.trials:
            return self._start(-1, {})
        tried = [
            t for t in self.trials.values() if t.draw >= 0 and not (t.result and t.result.state == "pruned")
        ]
        found = (
            self._propose(self.config, list(self.trials.values()))
            if len(tried) < self.config.num_points
            else None
        )
        return self._start(*found) if found else None

    def _start(self, draw: int, point: Point) -> Trial:
        first = 0 if self.config.include_base else 1
        return self.folder.start(max(self.trials, default=first - 1) + 1, draw, point)


def best_of(trials: Iterable[Trial], mode: Literal["max", "min"]) -> Trial | None:
    """The trial of the largest or the smallest value; of equal ones the first."""
    ranked = rank_trials(trials, mode)
    return ranked[0] if ranked else None


def rank_trials(trials: Iterable[Trial], mode: Literal["max", "min"]) -> list[Trial]:
    """The trials that have a value, the best first; of equal ones the first."""
    sign = -1.0 if mode == "max" else 1.0
    scored = [
        (sign * trial.result.value, trial.number, trial)
        for trial in trials
        if trial.result and trial.is_scored and trial.result.value is not None
    ]
    return [trial for *_, trial in sorted(scored, key=lambda row: row[:2])]
