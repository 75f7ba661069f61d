"""A sweep in the trackers of `run.trackers`: its own entry, and the final scores in its trials' entries."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsl_dist.config import RunConfig
from fsl_dist.training.runlog import write_hparams
from fsl_dist.training.trackers.sending import OPEN_S, Sender, add_facts, check_trackers, ending, kinds_of
from fsl_dist.training.trackers.tracker import Fact, TrackedRun
from index.base.settings import dump
from tune.records import Result, Trial, read_evaluation
from tune.space import show_value
from tune.sweeps.config import SweepConfig


@contextmanager
def tracking_sweep(config: SweepConfig) -> Iterator[dict[str, Fact]]:
    """Keep the sweep's own entry open during the block, and send the facts that the block added to the yielded mapping.

    The driver opens it before the first trial, since MLflow shows the trials below it. Raises RequestError like
    `check_trackers`.
    """
    check_trackers(config.base)
    folder = Path(config.dir).absolute()
    entry = TrackedRun(folder=folder, name=folder.name, config=dump(config), sweep=folder)
    senders = [Sender(kind, entry) for kind in kinds_of(config.base)]
    for sender in senders:
        sender.wait_until_open(OPEN_S)
    with ending(senders) as facts:
        yield facts


def report_trial(config: SweepConfig, trial: Trial, run: RunConfig, result: Result) -> None:
    """Add a trial's changes, its state and its scores to its entries, and to TensorBoard's table of hyperparameters.

    run: the trial's configuration; its training is over and its `evaluation.json` written.
    """
    point = {key: show_value(v) if isinstance(v, tuple) else v for key, v in trial.point.items()}
    if "tensorboard" in run.run.trackers and result.value is not None:
        write_hparams(trial.folder, point, run.stop_metric, result.value)
    if not kinds_of(run):
        return
    facts: dict[str, Fact] = {"trial": trial.number, "state": result.state, **_scores(trial)}
    if result.value is not None:
        facts["value"] = result.value
    add_facts(run, facts, Path(config.dir))


def _scores(trial: Trial) -> dict[str, float]:
    """Every score of the evaluation grid, named by the settings of its combination; means if it was repeated."""
    cells = list(read_evaluation(trial.folder))
    scores = {}
    for cell in cells:
        at = "".join(f";{name}={show_value(v)}" for name, v in cell.settings.items()) if cells[1:] else ""
        for name, value in cell.metrics.items():
            scores[f"{name}{at}"] = value["mean"] if isinstance(value, dict) else value
    return scores
