"""The settings of what stops trials early, pauses them or changes their settings on the way."""

from typing import Annotated, Literal

from pydantic import Field

from index.base.settings import settings


@settings("scheduler")
class NoScheduler:
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


@settings("scheduler")
class Asha:
    """Asynchronous successive halving: at each rung the better share of the trials so far continues."""

    kind: Literal["asha"] = "asha"
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    """epochs of every trial before the first rung; decisions follow the validations,
    every `training.validate_every` epochs"""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """factor between two rungs; 1/reduction of the trials pass each"""


@settings("scheduler")
class MedianRule:
    """A trial stops if its best value so far is below the median of the other trials' averages up to the same epoch."""

    kind: Literal["median"] = "median"
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    """epochs that every trial is given; the averages are taken from this epoch on"""
    min_trials: Annotated[int, Field(ge=1)] = 3
    """number of trials that must have reached an epoch before one is stopped there"""


@settings("scheduler")
class HyperBand:
    """Brackets of trials with different grace periods;
    in each, trials wait for one another and the better share continues."""

    kind: Literal["hyperband"] = "hyperband"
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """factor between the epochs of two halvings; 1/reduction of a bracket's trials pass each"""


@settings("scheduler")
class Population:
    """Population based training: the worst trials continue from the networks of the best, with perturbed settings."""

    kind: Literal["pbt"] = "pbt"
    every_epochs: Annotated[int, Field(ge=1)] = 2
    """epochs of a trial between two comparisons with the others"""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """share of the trials that are replaced, and share of those that replace them"""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """probability that a setting is drawn from its values again; otherwise a number is multiplied by 0.8 or 1.2
    within its range, and a list is moved to its next or previous value"""
