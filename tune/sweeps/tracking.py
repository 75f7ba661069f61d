"""A sweep in the trackers of `run.trackers`: its own entry, and the final scores in its trials' entries; and its state
in Ray's gauges."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import get_args

from fsl_dist.config import RunConfig
from fsl_dist.training.ray.gauges import Gauges
from fsl_dist.training.runlog import write_hparams
from fsl_dist.training.trackers.sending import OPEN_S, Sender, add_facts, check_trackers, ending, kinds_of
from fsl_dist.training.trackers.tracker import Fact, TrackedRun
from index.base.object_cache import with_addresses
from index.base.settings import dump
from tune.records import Result, State, Trial, read_evaluation
from tune.space import show_value
from tune.sweeps.config import SweepConfig
from tune.sweeps.progress import Show, Standing


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


@contextmanager
def exporting(config: SweepConfig, show: Show) -> Iterator[Show]:
    """A `show` that also reports the state of the sweep to Ray, for Prometheus: trials by state, and the best value."""
    labels = {"sweep": with_addresses(str(Path(config.dir).absolute()))}
    with closing(Gauges(labels)) as gauges:

        def show_and_export(standing: Standing) -> None:
            for state in get_args(State):
                gauges.set({"sweep/trials": standing.counts.get(state, 0)}, state=state)
            gauges.set({"sweep/trials": len(standing.running)}, state="running")
            gauges.set({"sweep/trials_wanted": standing.num_wanted})
            if standing.best and (value := standing.best[0].value) is not None:
                gauges.set({"sweep/best_value": value}, metric=standing.metric)
            show(standing)

        yield show_and_export


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
