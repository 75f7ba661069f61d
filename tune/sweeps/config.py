"""A sweep's settings: SWEEP.yaml is parsed like a run's file, and every key of its space is checked against a run's."""

from dataclasses import field, replace
from itertools import product
from typing import Annotated, ClassVar

from pydantic import Field

from fsl_dist.config import RunConfig
from fsl_dist.metrics.config import EvaluationConfig
from index.base.errors import ConfigError
from index.base.settings import dump, merge, settings, validate
from tune.space import Point, Scalar, nested, show_point
from tune.sweep_settings import SweepSettings
from tune.sweeps.changeable import check_changeable
from tune.sweeps.schedulers import Asha, HyperBand, MedianRule, NoScheduler, Population
from tune.sweeps.space_rules import check_evaluation, check_listed, check_space

_LIST_AXES = ("k_p", "delta_tau", "k")
"""settings of an evaluation that accept several values at a time"""


@settings("resources")
class Resources:
    """The resources of one trial."""

    workers: Annotated[int, Field(ge=0)] = 0
    """workers.num of every trial; 0: the base's"""
    cpus: Annotated[int, Field(ge=0)] = 0
    """workers.cpus of every trial; 0: the base's"""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a trial: 0 trains on the CPU, a fraction shares one; with several workers, one each"""


@settings("")
class SweepConfig(SweepSettings):
    """All settings of a sweep of runs: the varied run, the varied settings, and the search."""

    subject: ClassVar[str] = "a run"

    base: RunConfig
    """the run that every trial varies: a YAML file's path in SWEEP.yaml, or its mapping"""
    metric: str = ""
    """validation metric that trials are compared by, `training.stop_metric` of all; empty: the base's"""
    scheduler: NoScheduler | Asha | MedianRule | HyperBand | Population = field(default_factory=NoScheduler)
    """what stops, pauses or changes trials: none, asha, median, hyperband or pbt, with their settings"""
    resources: Resources = field(default_factory=Resources)
    """the resources of one trial"""
    scores_trials: bool = True
    """score a trial that has run to its end, on test images, or on val if there is no test split;
    false leaves that to `Run.evaluate`"""
    concurrency: Annotated[int, Field(ge=0)] = 0
    """concurrent trials; 0: as many as fit on the CPUs and GPUs, also while the cluster grows"""
    minutes: Annotated[float, Field(ge=0)] = 0.0
    """total running time of the sweep in minutes, including resumed sessions: running trials stop at their next
    validation, or after 1.03 times the minutes, where they keep their last checkpoint; 0: no limit"""
    trial_timeout_s: Annotated[float, Field(ge=0)] = 0.0
    """maximum seconds of a trial to its first validation, between two, or from its last to its end; a trial that
    takes longer is ended and counts as failed; 0: no limit"""

    def __post_init__(self) -> None:
        if self.mode == "min":
            raise ConfigError(
                f"mode=min with metric={self.metric or self.base.stop_metric}: every metric that a run validates "
                "by grows with quality, and its best epoch is the one with the largest (mode=max)"
            )
        if self.search == "points":
            check_listed(self.points, self.space)
        else:
            check_space(self.space, self.search, self.points)
        check_evaluation(self.evaluation)
        if self.base.training.patience == 0:
            raise ConfigError(
                f"metric={self.metric or self.base.stop_metric} is reported by no trial: the base has "
                "training.patience=0 and validates nothing (settings: training.patience: 10, or any number above 0)"
            )
        if self.base.training.validate_every > self.max_epochs:
            raise ConfigError(
                f"metric={self.metric or self.base.stop_metric} is reported by no trial: training.validate_every="
                f"{self.base.training.validate_every} is above the {self.max_epochs} epochs of a trial"
            )
        base = self.trial_base()
        if base.workers.num > 1 and self.resources.gpus not in (0, base.workers.num):
            raise ConfigError(
                f"resources.gpus={self.resources.gpus:g} with {base.workers.num} workers: each worker of a trial "
                f"uses a whole GPU (resources.gpus={base.workers.num}, or 0)"
            )
        self._check_scheduler()
        self.evaluation_settings(base)
        self.check_points()

    def _check_scheduler(self) -> None:
        kind = self.scheduler.kind
        if not isinstance(self.scheduler, HyperBand | Population):
            return
        if self.concurrency:
            raise ConfigError(
                f"concurrency={self.concurrency} with scheduler.kind={kind}, which itself decides which trials "
                "run and which wait: as many run as fit on the cluster (concurrency=0; resources.cpus makes them fewer)"
            )
        if self.search not in ("random", "grid"):
            raise ConfigError(
                f"search={self.search_name} with scheduler.kind={kind}: all trials start together, so none can be "
                "proposed from the results of earlier ones (search=random or grid)"
            )
        if isinstance(self.scheduler, Population):
            check_changeable(self.space)
            if self.num_points + self.include_base < 2:
                raise ConfigError(
                    f"trials={self.trials} with scheduler.kind=pbt: a population has two trials or more"
                )

    @property
    def value_name(self) -> str:
        """The validation metric that trials are compared by."""
        return self.trial_base().stop_metric

    def trial_base(self) -> RunConfig:
        """The base with the sweep's metric and resources; raises ConfigError if they do not fit it."""
        workers = replace(
            self.base.workers,
            num=self.resources.workers or self.base.workers.num,
            cpus=self.resources.cpus or self.base.workers.cpus,
            gpu="auto" if self.resources.gpus else "never",
        )
        training = replace(self.base.training, stop_metric=self.metric or self.base.training.stop_metric)
        return replace(self.base, workers=workers, training=training)

    def trial_config(self, point: Point, folder: str = "") -> RunConfig:
        """The run of a point; ConfigError for a point that breaks a run's rules."""
        base = dump(self.trial_base())
        if point.get("method.kind", base["method"]["kind"]) != base["method"]["kind"]:
            base["method"] = {}  # the settings of another method
        tree = merge(merge(base, nested(point)), {"run": {"dir": folder}})
        return validate(RunConfig, tree, f"the point {show_point(point)}" if point else "the base")

    @property
    def max_epochs(self) -> int:
        """The longest that a trial may train."""
        knob = self.space.get("training.epochs")
        values: tuple = (*knob.options, *knob.randint) if knob else (self.base.training.epochs,)
        values = (*values, *(point["training.epochs"] for point in self.points if "training.epochs" in point))
        return max(int(value) for value in values if isinstance(value, int | float))

    def evaluation_settings(self, config: RunConfig) -> list[tuple[Point, EvaluationConfig]]:
        """All combinations of the evaluation grid, as settings of a run: (what distinguishes it, the settings).

        Settings that accept lists (`k_p`, `delta_tau`, `k`) use all of their values at once, because their scores
        have different names. Values that the run refuses, such as a Δτ that leaves no temperature, are omitted from
        combinations.
        """
        lists: dict[str, list[Scalar]] = {
            name: list(values) for name, values in self.evaluation.items() if name in _LIST_AXES
        }
        single = {name: values for name, values in self.evaluation.items() if name not in _LIST_AXES}
        temperature = getattr(config.method, "temperature", None)
        if temperature is not None and "delta_tau" in lists:
            deltas = [delta for delta in lists["delta_tau"] if isinstance(delta, int | float)]
            lists["delta_tau"] = [delta for delta in deltas if temperature + delta > 0] or [0.0]
        cells = []
        for values in product(*single.values()):
            cell: Point = dict(zip(single, values, strict=True))
            tree = merge(dump(config.evaluation), {**lists, **cell})
            settings = validate(EvaluationConfig, tree, "the evaluation grid", "evaluation")
            cells.append((cell, settings))
        return cells
