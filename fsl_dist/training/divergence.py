"""When training has come to what is not finite: the error that stops it, and what that error says.

The outputs of the network are looked at in every step, whatever the method: a loss proves nothing, since a hinge over distances
of NaN is 0. What is read of a step anyway carries the answer, so a GPU does not wait once more for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from fsl_dist.training.step import PlannedStep

_NOWHERE = [2**62, 2**62]
"""a batch and a row behind all others"""


@dataclass(frozen=True, slots=True)
class BadRow:
    """Where a step's outputs are not finite."""

    batch: int
    """number of the batch in its step"""
    row: int
    """position in the batch"""


@dataclass(frozen=True, slots=True)
class OutputRows:
    """What the network gave for some rows of a batch on this worker."""

    batch: int
    """number of the batch in its step"""
    positions: NDArray[np.int64]
    """int64 [n]: the rows' positions in the batch"""
    outputs: Tensor
    """float [n, dim], without gradient"""


class DivergedError(TrainingError):
    """A step came to what is not finite: a row of the network's outputs, or the loss or gradient, in words."""

    def __init__(self, planned: PlannedStep, what: BadRow | str) -> None:
        super().__init__(planned, what)
        self.planned = planned
        self.what = what

    def __str__(self) -> str:
        is_text = isinstance(self.what, str)
        return f"training diverged: {self.what if is_text else 'an output of the network is not finite'} (a lower training.lr)"


def find_bad_row(forwarded: list[OutputRows], group: WorkerGroup, device: torch.device) -> BadRow:
    """The first row of a step's batches, whichever worker has it, that is not finite. Collective."""
    first = _NOWHERE
    for rows in forwarded:
        by_position = rows.positions.argsort()
        found = first_bad_row(rows.outputs[torch.from_numpy(by_position).to(rows.outputs.device)])
        if found >= 0:
            first = min(first, [rows.batch, int(rows.positions[by_position[found]])])
    everyones = group.gather_equal(torch.tensor(first, device=device)).tolist()
    return BadRow(*min(everyones))


@contextmanager
def explaining_divergence(
    config: RunConfig, catalogue: Catalogue, network: nn.Module, epoch: int
) -> Iterator[None]:
    """Raise a DivergedError of a step of `epoch` as a TrainingError that names step, sample, file, row and the way out."""
    try:
        yield
    except DivergedError as error:
        planned, what = error.planned, error.what
        if isinstance(what, BadRow):
            ids = planned.batches[what.batch].ids
            sample = catalogue.describe_sample(int(ids[what.row]))
            what = f"the output for {sample}, row {what.row} of the {len(ids)} of its batch, {describe_bad(network)}"
        raise TrainingError(
            f"training diverged at step {planned.step + 1} of epoch {epoch + 1} with method.kind={config.method.kind}: {what} "
            f"({_remedies(config, network)})"
        ) from error


def check_trained(
    network: nn.Module, average: Mapping[str, Tensor], config: RunConfig, global_step: int
) -> None:
    """Raise TrainingError where the weights, or their average, are not finite: no later step would have looked at them."""
    bad = find_non_finite(network) or (find_non_finite(network, average) if average else "")
    if bad:
        raise TrainingError(
            f"training diverged by step {global_step} with method.kind={config.method.kind}: the network's tensor {bad} {NOT_FINITE} "
            f"({_remedies(config, network)})"
        )


def _remedies(config: RunConfig, network: nn.Module) -> str:
    settings, device = config.training, next(network.parameters()).device
    remedies = [f"training.lr below {settings.lr:g}"]
    if settings.decay >= 1:  # 20 times what is usual, or more
        remedies.insert(0, f"training.weight_decay below {settings.decay:g}")
    if settings.clip_norm == 0:
        remedies.append("training.clip_norm=5")
    if settings.warmup == 0:
        remedies.append("training.warmup=0.1")
    if settings.uses_bf16(device.type):
        remedies.append("training.precision=float32")
    return " or ".join(remedies)
