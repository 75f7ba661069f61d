"""The class trainable that runs a sweep's trials sequentially in one actor.

A trial is a run with its own folder, checkpoints and owner, so Tune stores nothing of it: `save` returns only the
name of the run's folder, and `restore` reads nothing. The run trains in a thread, which waits after each validation
until Tune requests the next result.
"""

import os
import queue
import threading
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.tune import Checkpoint, Trainable

from fsl_dist.training.loop import Watch
from fsl_dist.training.ray.stopping import hear
from index.base.files import Owner
from index.base.stopping import StopRequest
from tune.records import Change, Result, SweepFolder, Trial
from tune.sweep_file import parse_sweep
from tune.sweeps.config import SweepConfig
from tune.sweeps.engine.records import LEFT
from tune.sweeps.trial import run_trial

_HOME = Path.cwd()
"""where the process started, before Tune moves it into a folder of the trial's"""


class TrialFailed(Exception):
    """Ends the actor of a failed trial, whose state is unknown. The failure was reported before."""


class RunTrial(Trainable):
    """Trains and scores trials of one sweep; `train` returns at each validation,
    and at a trial's end with its result."""

    _thread: threading.Thread | None
    """trains; None before a trial's first step, and where its run was left"""
    _waits: bool
    """whether the thread waits for an answer"""
    _stops: bool
    """whether the trial was asked to stop"""
    _has_failed: bool
    """whether the trial has failed, so that the actor ends"""
    _before_s: float
    """seconds inside training before the run was last interrupted and continued here"""

    def setup(
        self, config: dict[str, Any], text: str = "", folder: str = "", owner: int = 0, bell: Any = None
    ) -> None:
        """Start the first trial.

        text, folder, owner: the sweep's YAML, its folder and the claim of its driver. bell: rings on a stop request.
        """
        import torch

        # The sweep passes the settings parser again: a worker's installation may differ from the driver's.
        self._sweep: SweepConfig = replace(parse_sweep(text, "the driver's sweep"), dir=folder)
        self._owner = Owner(Path(folder), owner)
        base = self._sweep.trial_base()
        self._uses_ray = base.uses_ray
        if not self._uses_ray:
            torch.set_num_threads(base.workers.cpus)
        self._thread = None
        self._stop = StopRequest() if bell is None else hear(bell)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Continue with another trial; the run of the previous one ends with a checkpoint."""
        self._leave()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next validation, or to the end: `epoch` and `value`, or `state` and the rest of a `Result`."""
        if self._has_failed:
            raise TrialFailed
        if self._thread is None:
            self._start()
        elif self._waits:
            self._answers.put(self._stops)
        message = self._messages.get()
        if message is None:  # stop request
            return {"state": LEFT, "value": None, "done": True}
        if isinstance(message, BaseException):
            raise message
        self._waits = not isinstance(message, Result)
        if not isinstance(message, Result):
            return message
        self._has_failed = message.state == "failed"
        if not self._uses_ray:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # other trials share the GPU
        facts = asdict(message) | {"train_s": message.train_s + self._before_s}
        return {**facts, "done": not self._has_failed}

    def end_run(self) -> None:
        """Stop the trial at the validation that it waits at, or at its next one."""
        self._stops = True

    # Tune's own method would copy a folder to its storage, which workers on other machines may not see.
    def save(self, checkpoint_dir: str | None = None) -> Any:
        """End the run with its own checkpoint; the next `train` resumes from it."""
        from ray.train._internal.session import _TrainingResult

        self._leave()
        return _TrainingResult(Checkpoint(str(self._trial.folder)), dict(self._last_result or {}))

    def restore(self, checkpoint_path: Any) -> None:
        """Does nothing: a run resumes from the content of its folder (`tune.sweeps.engine.take_over`)."""

    def cleanup(self) -> None:
        """End the run."""
        self._leave()

    def watch(self, trial: int) -> Watch:
        """The function that the trial's run calls after each validation."""
        return partial(_ask_box, self._box) if self._box is not None else self._ask

    def is_stopped(self, trial: int) -> bool:
        """Whether the trial was asked to stop, now or before."""
        return self._stops

    def _begin(self, config: dict[str, Any]) -> None:
        os.chdir(_HOME)
        changes = tuple(Change(**change) for change in config["changes"])
        self._trial = Trial(
            number=config["number"],
            folder=SweepFolder(self._owner.folder).trial_folder(config["number"]),
            point={key: tuple(v) if isinstance(v, list) else v for key, v in config["point"].items()},
            changes=changes,
        )
        self._stops = config["is_stopped"]
        self._has_failed = False
        self._before_s = 0.0

    def _start(self) -> None:
        self._messages: queue.Queue[Any] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        self._left = threading.Event()
        self._waits = False
        self._began = time.perf_counter()
        self._box = _open_box() if self._uses_ray else None
        if self._box is not None:
            threading.Thread(target=_forward, args=(self._box, self._ask), daemon=True).start()
        self._thread = threading.Thread(target=self._work, name="trial", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        messages, left = self._messages, self._left
        try:
            result = run_trial(
                self._sweep, self._trial, self, owner=self._owner, is_left=left.is_set, stop=self._stop
            )
        except BaseException as error:
            messages.put(error)
        else:
            messages.put(result)  # not read if the run was interrupted
        finally:
            if self._box is not None:
                ray.kill(self._box)

    def _ask(self, epoch: int, value: float) -> bool:
        self._messages.put({"epoch": epoch, "value": value})
        return self._answers.get()

    def _leave(self) -> None:
        """Wait until the run has ended: at the validation where it waits, otherwise at its next one."""
        if self._thread is not None:
            self._left.set()
            self._answers.put(True)
            self._thread.join()
            self._thread = None
            self._before_s += time.perf_counter() - self._began


def _open_box() -> Any:
    return ray.remote(num_cpus=0)(_Mailbox).remote()


class _Mailbox:
    """Connects the first worker of a run, which asks, with the trainable, which answers when Tune does."""

    def __init__(self) -> None:
        import asyncio

        self._asked: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
        self._answers: asyncio.Queue[bool] = asyncio.Queue()

    async def ask(self, epoch: int, value: float) -> bool:
        """Ask, and wait for the answer."""
        await self._asked.put((epoch, value))
        return await self._answers.get()

    async def next(self) -> tuple[int, float]:
        """The next question."""
        return await self._asked.get()

    async def answer(self, stops: bool) -> None:
        """Answer the question before."""
        await self._answers.put(stops)


def _ask_box(box: Any, epoch: int, value: float) -> bool:
    return ray.get(box.ask.remote(epoch, value))


def _forward(box: Any, ask: Watch) -> None:
    """Forward questions until the mailbox ends with its run."""
    try:
        while True:
            ray.get(box.answer.remote(ask(*ray.get(box.next.remote()))))
    except ray.exceptions.RayError:
        return
