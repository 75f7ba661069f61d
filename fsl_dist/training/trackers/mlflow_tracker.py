"""A run in MLflow, sent by its client, which reads MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME and MLflow's other variables."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fsl_dist.training.trackers.tracker import PROJECT, Ending, Fact, TrackedRun, flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_STATUS: dict[Ending, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
# Limits of MLflow's REST interface for one request, and for one value.
_METRICS_AT_A_TIME = 1000
_PARAMS_AT_A_TIME = 100
_LONGEST_PARAM = 6000
_LONGEST_TAG = 8000


def tracking_uri(tracked: TrackedRun) -> str:
    """MLFLOW_TRACKING_URI; without it MLflow's own default in the working folder, or a file in the folder of a sweep.

    Trials run in processes whose working folders differ, hence the fixed file.
    """
    prepare_mlflow()
    import mlflow

    if tracked.sweep is not None and not os.environ.get("MLFLOW_TRACKING_URI"):
        return f"sqlite:///{tracked.sweep / 'mlflow.db'}"
    return mlflow.get_tracking_uri()


def prepare_mlflow() -> None:
    """Set the defaults that must be set before MLflow is imported; the environment takes precedence."""
    # MLflow reports its use to its makers, and prints links to stdout, which belongs to --json.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


class MlflowTracker:
    """An MLflow run: created, or continued by its identifier."""

    def __init__(self, tracked: TrackedRun, known: str, parent: str) -> None:
        """known: identifier of the run to continue, if any; parent: of the sweep's own run, if any."""
        uri = tracking_uri(tracked)
        from mlflow import MlflowClient

        self._client = MlflowClient(uri)
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
        else:
            self.id = self._create(tracked, parent)
        experiment = self._client.get_run(self.id).info.experiment_id
        shown = re.sub(r"//[^/@]*@", "//", uri)
        self.address = f"{shown} experiment {experiment} run {self.id}"

    def _create(self, tracked: TrackedRun, parent: str) -> str:
        from mlflow.entities import Param

        tags = {"run_dir": str(tracked.folder)}
        if tracked.group:
            tags["sweep"] = tracked.group
        if parent:
            tags["mlflow.parentRunId"] = parent
        created = self._client.create_run(_find_experiment(self._client), tags=tags, run_name=tracked.name)
        params = [
            Param(key, str(value)[:_LONGEST_PARAM])
            for key, value in flatten(tracked.config).items()
            if value != ""  # MLflow's file store cannot read an empty value back
        ]
        for start in range(0, len(params), _PARAMS_AT_A_TIME):
            self._client.log_batch(created.info.run_id, params=params[start : start + _PARAMS_AT_A_TIME])
        return created.info.run_id

    def log(self, lines: Sequence[Mapping[str, float]]) -> None:
        """Record lines of a metrics file, in requests of at most 1000 values."""
        metrics: list[Metric] = []
        for line in lines:
            metrics += _metrics(line, int(line["step"]))
        for start in range(0, len(metrics), _METRICS_AT_A_TIME):
            self._client.log_batch(self.id, metrics=metrics[start : start + _METRICS_AT_A_TIME])

    def end(self, facts: Mapping[str, Fact], ending: Ending) -> None:
        """Numbers become metrics `report/NAME`, texts become tags."""
        from mlflow.entities import RunTag

        numbers = {f"report/{name}": float(v) for name, v in facts.items() if not isinstance(v, str)}
        tags = [RunTag(valid_name(n), v[:_LONGEST_TAG]) for n, v in facts.items() if isinstance(v, str)]
        self._client.log_batch(self.id, metrics=_metrics(numbers, 0), tags=tags)
        self._client.set_terminated(self.id, _STATUS[ending])


def valid_name(name: str) -> str:
    """A metric's name in the characters that MLflow allows: `knn/mcr@5` becomes `knn/mcr_at_5`."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))


def _metrics(values: Mapping[str, float], step: int) -> "list[Metric]":
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(valid_name(name), value, now_ms, step) for name, value in values.items() if name != "step"]


def _find_experiment(client: "MlflowClient") -> str:
    """Identifier of the experiment that the environment selects, otherwise of `PROJECT`;
    created if it does not exist."""
    from mlflow.exceptions import MlflowException

    if named := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return named
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    found = client.get_experiment_by_name(name)
    if found is None:
        with contextlib.suppress(MlflowException):  # another trial may have created it just now
            return client.create_experiment(name)
        found = client.get_experiment_by_name(name)
    if found is None:
        raise RuntimeError(f"experiment {name} cannot be created")
    return found.experiment_id
