"""The Ray actors that run a sweep's trials, one trial after another."""

from dataclasses import replace
from functools import partial
from typing import Any

from fsl_dist.config import RunConfig
from fsl_dist.training.loop import Watch
from index.base.settings import parse_yaml, validate
from tune.records import Result, Trial
from tune.sweep_file import render_sweep
from tune.sweeps.config import SweepConfig
from tune.sweeps.trial import run_trial


class Crew:
    """The actors that run trials: used again, started where too few are idle."""

    def __init__(self, config: SweepConfig, judge: Any) -> None:
        import ray

        base = config.trial_base()
        # With several workers the actor only waits for Ray Train's, which have the cores.
        amount = (0, 0.0) if base.uses_ray else (base.num_cpus, config.resources.gpus)
        self._class = ray.remote(num_cpus=amount[0], num_gpus=amount[1])(_Worker)
        self._arguments = render_sweep(config), config.dir, judge
        self._idle: list[Any] = []
        self._all: list[Any] = []

    def take(self) -> Any:
        """An idle actor."""
        if not self._idle:
            self._idle.append(self._class.remote(*self._arguments))
            self._all.append(self._idle[-1])
        return self._idle.pop()

    def give_back(self, worker: Any, *, is_sound: bool) -> None:
        """An actor is idle again; one whose trial failed may hold anything, and is ended."""
        if is_sound:
            self._idle.append(worker)
        else:
            self._end(worker)

    def dismiss(self) -> None:
        """End all actors."""
        for worker in list(self._all):
            self._end(worker)

    def _end(self, worker: Any) -> None:
        import ray

        self._all.remove(worker)
        ray.kill(worker)


class _Worker:
    """Runs trials, one after another, in a process of its own."""

    def __init__(self, text: str, folder: str, judge: Any) -> None:
        import torch

        # The sweep passes the gate again: a worker's installation may differ from the driver's.
        config = validate(SweepConfig, parse_yaml(text, "the driver's sweep"), "the driver's sweep")
        self.config = replace(config, dir=folder)
        self.base: RunConfig = self.config.trial_base()
        self.judge = judge
        if not self.base.uses_ray:
            torch.set_num_threads(self.base.workers.cpus)

    def run(self, trial: Trial) -> Result:
        """Run a trial and tell how it ended."""
        import torch

        result = run_trial(self.config, trial, self)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other trials share the GPU
        return result

    def watch(self, trial: int) -> Watch:
        """What the trial's run asks after each validation."""
        return partial(_ask, self.judge, trial)

    def is_stopped(self, trial: int) -> bool:
        """Whether the trial was told to stop before."""
        import ray

        return ray.get(self.judge.is_stopped.remote(trial))


def _ask(judge: Any, trial: int, epoch: int, value: float) -> bool:
    import ray

    return ray.get(judge.report.remote(trial, epoch, value))
