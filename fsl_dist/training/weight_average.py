"""The exponential average of a network's weights, which is scored and used in place of the weights that learn."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The average of the weights and running statistics after each step; empty before the first, and with `ema` 0.

    a_1 = w_1 and a_(t+1) = d·a_t + (1 − d)·w_(t+1) with d = min(ema, (1 + t)/(10 + t)), so that the influence of the
    first steps decays quickly. The average is on the network's device and needs as much memory as the network.
    """

    def __init__(self, ema: float) -> None:
        self.ema = ema
        self.state: dict[str, Tensor] = {}
        """by the names of the network's state_dict"""

    @torch.no_grad()
    def update(self, network: nn.Module, num_before: int) -> None:
        """Add the weights after a step to the average of the `num_before` steps before it."""
        if self.ema == 0:
            return
        own = network.state_dict()
        if not self.state:
            self.state = {name: value.clone() for name, value in own.items()}
            return
        names = [name for name, value in own.items() if value.is_floating_point()]
        decay = min(self.ema, (1 + num_before) / (10 + num_before))
        average = get_ema_multi_avg_fn(decay)
        average([self.state[name] for name in names], [own[name] for name in names], num_before)
        for name in own.keys() - set(names):  # counters
            self.state[name].copy_(own[name])

    def running_statistics(self) -> list[Tensor]:
        """Batch norm's averaged means and variances themselves, not copies."""
        return [
            value for name, value in self.state.items() if name.endswith((".running_mean", ".running_var"))
        ]

    @contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """Load the average into `network` inside the block, and restore its own weights after it."""
        if not self.state:
            yield
            return
        own = network.state_dict()
        kept = {name: value.clone() for name, value in own.items()}
        _copy(self.state, own)
        try:
            yield
        finally:
            _copy(kept, own)


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
