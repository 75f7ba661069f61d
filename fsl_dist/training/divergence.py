"""Handling of non-finite values in training: which steps are skipped, when the run ends, and the error message.

The outputs of the network are checked at every step, for all methods: a finite loss is no proof, since a hinge over
distances of NaN is 0. The result is read together with other values of the step, so a GPU needs no additional
synchronisation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import TrainingError
from fsl_dist.finite import NOT_FINITE, describe_bad, find_non_finite, first_bad_row
from fsl_dist.training.checkpoint import CheckpointFolder, Progress, read_progress
from index.vectors import MAX_NORM

if TYPE_CHECKING:
    from fsl_dist.training.step import PlannedStep

log = logging.getLogger(__name__)

_NUM_NAMED = 5
"""number of samples that an error names"""

_NOWHERE = [2**62, 2**62]
"""a batch and a row after all others"""


@dataclass(frozen=True, slots=True)
class BadRow:
    """Position of the first non-finite output of a step."""

    batch: int
    """number of the batch in its step"""
    row: int
    """position in the batch"""


@dataclass(frozen=True, slots=True)
class OutputRows:
    """The network's outputs for some rows of a batch on this worker."""

    batch: int
    """number of the batch in its step"""
    positions: NDArray[np.int64]
    """int64 [n]: the rows' positions in the batch"""
    outputs: Tensor
    """float [n, dim], without gradient"""


class DivergedError(TrainingError):
    """A step had a non-finite value: a row of the network's outputs, or the loss or gradient, as text."""

    def __init__(self, planned: PlannedStep, what: BadRow | str, is_asked_to_stop: bool = False) -> None:
        super().__init__(planned, what, is_asked_to_stop)
        self.planned = planned
        self.what = what
        self.is_asked_to_stop = is_asked_to_stop

    def __str__(self) -> str:
        is_text = isinstance(self.what, str)
        return f"training diverged: {self.what if is_text else 'an output of the network is not finite'} (a lower training.lr)"


def find_bad_row(forwarded: list[OutputRows], group: WorkerGroup, device: torch.device) -> BadRow:
    """The first non-finite row of a step's batches on any worker. Collective."""
    first = _NOWHERE
    for rows in forwarded:
        by_position = rows.positions.argsort()
        found = first_bad_row(rows.outputs[torch.from_numpy(by_position).to(rows.outputs.device)])
        if found >= 0:
            first = min(first, [rows.batch, int(rows.positions[by_position[found]])])
    everyones = group.gather_equal(torch.tensor(first, device=device)).tolist()
    return BadRow(*min(everyones))


def check_gradient(norm: Tensor, planned: PlannedStep, is_asked_to_stop: bool = False) -> float:
    """The norm of a step's gradient as a number; DivergedError if it is not finite,
    or if its square would soon not be."""
    value = float(norm)
    if not value <= MAX_NORM:
        raise DivergedError(planned, f"the norm of the gradient is {value:g}", is_asked_to_stop)
    return value


class BadSteps:
    """What becomes of steps that are not finite: skipped,
    until too many come in a row or the weights are not finite either."""

    def __init__(
        self,
        config: RunConfig,
        catalogue: Catalogue,
        network: nn.Module,
        checkpoints: CheckpointFolder,
        group: WorkerGroup,
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._network = network
        self._checkpoints = checkpoints
        self._group = group
        self._seen: list[str] = []

    def skip(self, error: DivergedError, progress: Progress) -> Progress:
        """`progress` with one more skipped step. Collective.

        Raises TrainingError, the same on every worker, which names the step, samples, the checkpoint to go back to
        and a remedy: if the weights, which the step has not changed, are not finite, and after
        `training.max_bad_steps` in a row.
        """
        what = self._describe(error)
        if progress.bad_in_a_row == 0:
            self._seen = []
        self._seen.append(what)
        in_a_row, most = progress.bad_in_a_row + 1, self._config.training.max_bad_steps
        place = f"step {error.planned.step + 1} of epoch {progress.epoch + 1}"
        # Statistics of batch norm are a worker's own.
        are_weights_bad = self._group.first_text(find_non_finite(self._network)) != ""
        if are_weights_bad or in_a_row >= most:
            repeated = f", the last of {in_a_row} non-finite steps in a row" if in_a_row > 1 else ""
            earlier = (
                "".join(f"; before it, {seen}" for seen in self._seen[:-1]) if not are_weights_bad else ""
            )
            raise TrainingError(
                f"training diverged at {place} with method.kind={self._config.method.kind}{repeated}: {what}{earlier} "
                f"({_remedies(self._config, self._network)}{describe_way_back(self._checkpoints)})"
            ) from error
        if self._group.is_first:
            log.warning(
                "%s is skipped: %s (training.max_bad_steps=%d of them in a row end the run)",
                place,
                what,
                most,
            )
        return replace(progress, skipped_steps=progress.skipped_steps + 1, bad_in_a_row=in_a_row)

    def _describe(self, error: DivergedError) -> str:
        planned, what = error.planned, error.what
        if isinstance(what, BadRow):
            ids = planned.batches[what.batch].ids
            sample = self._catalogue.describe_sample(int(ids[what.row]))
            return f"the output for {sample}, row {what.row} of the {len(ids)} of its batch, {describe_bad(self._network)}"
        ids = np.concatenate([batch.ids for batch in planned.batches])
        keys = ", ".join(f"'{key}'" for key in self._catalogue.keys(ids[:_NUM_NAMED]))
        return f"{what}, of {len(ids)} images: {keys}{', …' if len(ids) > _NUM_NAMED else ''}"


def describe_way_back(checkpoints: CheckpointFolder) -> str:
    """The checkpoint to go back to, the best one or otherwise the newest before the bad steps, as the end of a
    message; empty if there is none."""
    for folder in (checkpoints.best(), *reversed(checkpoints.finished())):
        if folder is not None and (progress := read_progress(folder)).bad_in_a_row == 0:
            return f"; resume=True with from_step={progress.global_step} goes back to {folder}"
    return ""


def check_trained(
    network: nn.Module, average: Mapping[str, Tensor], config: RunConfig, global_step: int
) -> None:
    """Raise TrainingError where the weights, or their average, are not finite:
    no later step would have looked at them."""
    bad = find_non_finite(network) or (find_non_finite(network, average) if average else "")
    if bad:
        raise TrainingError(
            f"training diverged by step {global_step} with method.kind={config.method.kind}: the network's tensor "
            f"{bad} {NOT_FINITE} ({_remedies(config, network)})"
        )


def _remedies(config: RunConfig, network: nn.Module) -> str:
    settings, device = config.training, next(network.parameters()).device
    remedies = [f"training.lr below {settings.lr:g}"]
    if settings.decay >= 1:  # 20 times the usual value, or more
        remedies.insert(0, f"training.weight_decay below {settings.decay:g}")
    if settings.clip_norm == 0:
        remedies.append("training.clip_norm=5")
    if settings.warmup == 0:
        remedies.append("training.warmup=0.1")
    if settings.uses_bf16(device.type):
        remedies.append("training.precision=float32")
    return " or ".join(remedies)
