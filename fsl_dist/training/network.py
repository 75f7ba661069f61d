"""The network that a run trains: built from its seed, with the batch norm that its method and workers need."""

import logging
import os
import shutil
import socket
import sys

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from fsl_dist.config import RunConfig
from fsl_dist.data.loader import Source
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError
from fsl_dist.methods.method import Method
from fsl_dist.models.backbones import build_network
from fsl_dist.models.batch_norm import apply_batch_norm, resolve_batch_norm, running_statistics
from fsl_dist.models.embedding import Network
from fsl_dist.seeding import generator
from fsl_dist.training.weight_average import WeightAverage

log = logging.getLogger(__name__)


def build_trained(
    config: RunConfig, source: Source, method: Method, group: WorkerGroup
) -> tuple[Network, bool]:
    """(the network on the CPU, whether its batch norm is of ghost groups); the same weights on every worker."""
    torch.manual_seed(int(generator(config.run.seed, "network").integers(2**63)))
    network = build_network(
        config.backbone,
        sample_shape=source.sample_shape,
        num_classes=method.num_outputs,
        normalise=method.normalise,
        outputs_embeddings=method.outputs_embeddings,
    )
    mode = resolve_batch_norm(
        config.backbone.batch_norm,
        is_global=method.is_global,
        is_chunked=config.training.chunk_size > 0,
        has_weights=config.backbone.starts_from_weights,
    )
    apply_batch_norm(network, mode)
    if mode == "batch" and group.world_size > 1 and group.is_first and running_statistics(network):
        log.info(
            "backbone.batch_norm=batch: statistics are each worker's own, so results depend on workers.num=%d",
            group.world_size,
        )
    return network, mode == "ghost"


def check_compiler() -> None:
    """Raise RequestError if torch.compile would not find its C++ compiler; its own message has a hundred lines."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise RequestError(
            f"training.compile=true needs a C++ compiler on {socket.gethostname()}, but there is no '{compiler}' "
            "(install one, name it by CXX, or train without training.compile)"
        )


def seed_dropout(seed: int, global_step: int, rank: int, device: torch.device) -> None:
    """Seed dropout and stochastic depth by (seed, step, rank): a resumed step draws the same numbers."""
    drawn = int(generator(seed, "dropout", global_step, rank).integers(2**63))
    # torch.manual_seed would also seed missing devices, and record a stack for each: 0.4 ms.
    torch.default_generator.manual_seed(drawn)
    if device.type == "cuda":
        torch.cuda.manual_seed(drawn)


class RunningStatistics:
    """Batch norm's running statistics of a network and of the average of its weights, each worker's own in training."""

    def __init__(self, network: torch.nn.Module, average: WeightAverage, group: WorkerGroup) -> None:
        self._network = network
        self._average = average
        self._group = group

    def _all(self) -> list[Tensor]:
        return [*running_statistics(self._network), *self._average.running_statistics()]

    def average(self) -> None:
        """Average them over the workers: before scores, k-means, mining, checkpoints. Collective."""
        self._group.average_(self._all())

    def of_workers(self) -> Tensor | None:
        """float [world_size, n]: the statistics of each worker;
        None with one worker, or if none has any. Collective."""
        own = self._all()
        if self._group.world_size == 1 or not own:
            return None
        return self._group.gather_equal(torch.cat([part.reshape(-1) for part in own]))

    def restore(self, of_workers: Tensor) -> None:
        """Restore this worker's row of the result of `of_workers`;
        does nothing for another number of workers, or for [0]."""
        if len(of_workers) != self._group.world_size:
            return
        tensors = self._all()
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, part in zip(tensors, of_workers[self._group.rank].split(sizes), strict=True):
            tensor.copy_(part.view_as(tensor))

    def copy(self) -> list[Tensor]:
        """Copies of the network's, and of their counters, for `put_back`."""
        return [buffer.clone() for buffer in self._buffers()]

    def put_back(self, kept: list[Tensor]) -> None:
        """Give the network what `copy` returned."""
        for buffer, value in zip(self._buffers(), kept, strict=True):
            buffer.copy_(value)

    def _buffers(self) -> list[Tensor]:
        norms = [module for module in self._network.modules() if isinstance(module, BatchNorm)]
        return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
