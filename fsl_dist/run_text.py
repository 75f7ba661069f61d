"""A run in words: what `repr` and a notebook show of it."""

from typing import TYPE_CHECKING, Any

from fsl_dist.notebook import html_table
from index.base.object_cache import with_addresses

if TYPE_CHECKING:
    from fsl_dist.run import Run


def progress_of(run: "Run") -> Any:
    """The progress of the newest checkpoint; None if there is none."""
    from fsl_dist.training.checkpoint import CheckpointFolder, read_progress

    checkpoints = CheckpointFolder(run.dir, keep=1, owner=None)
    checkpoints.refresh()
    latest = checkpoints.latest()
    return None if latest is None else read_progress(latest)


def describe_run(run: "Run") -> str:
    """One line: folder, method, epochs, best validation."""
    progress = progress_of(run)
    state = f"{progress.epoch} epochs" if progress else "no checkpoint"
    best = f", {_describe_best(run, progress)}" if run.best is not None else ""
    return f"Run('{with_addresses(str(run.dir))}', method={run.config.method.kind}, {state}{best})"


def run_table(run: "Run") -> str:
    """The same as an HTML table, with the data set, the network and the head."""
    progress = progress_of(run)
    rows = {
        "data set": with_addresses(run.config.data.dataset),
        "method": run.config.method.kind,
        "network": run.config.backbone.name,
        "epochs": progress.epoch if progress else 0,
        "validation": "none" if run.best is None else _describe_best(run, progress),
        "head": run.head.name if run.head else "none",
    }
    return html_table(["run", with_addresses(str(run.dir))], rows.items())


def _describe_best(run: "Run", progress: Any) -> str:
    start = "" if progress.start_value is None else f" from {progress.start_value:.4g} at the start"
    return f"best {run.config.stop_metric} {progress.best_value:.4g}{start}"
