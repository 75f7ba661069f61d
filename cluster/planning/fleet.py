"""The machines that a plan is for, and whether rates may be used for them."""

from typing import Annotated

from pydantic import Field

from cluster.planning.rates import Rates
from fsl_dist.config import RunConfig
from fsl_dist.errors import RequestError
from index.base.settings import settings


@settings("")
class Fleet:
    """The machines of a plan; each is one like that of the rates file."""

    workers: Annotated[int, Field(ge=1)] = 1
    """machines"""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """of each, 0 = on the CPU"""
    processes_per_worker: Annotated[int, Field(ge=0)] = 0
    """training processes a machine; 0 = one a GPU, or one"""
    network_gbit: Annotated[float, Field(gt=0)] | None = None
    """of each machine's link, 10⁹ bits/s; None = as two processes of the measured machine reach"""
    storage_mb_s: Annotated[float, Field(gt=0)] | None = None
    """storage bandwidth of all machines together, 10⁶ bytes/s; None: the measured one, for each machine"""

    def __post_init__(self) -> None:
        if self.gpus_per_worker and self.processes_per_worker > self.gpus_per_worker:
            raise RequestError(
                f"processes_per_worker={self.processes_per_worker} with gpus_per_worker={self.gpus_per_worker}: a "
                "training process needs a GPU (fewer processes, or more GPUs)"
            )

    @property
    def per_worker(self) -> int:
        """Training processes a machine."""
        return self.processes_per_worker or max(1, self.gpus_per_worker)

    @property
    def processes(self) -> int:
        """Training processes in all."""
        return self.workers * self.per_worker


def check_rates(config: RunConfig, rates: Rates, fleet: Fleet, place: str) -> None:
    """Raise RequestError where the rates belong to another network, image size, precision or device than the plan's."""
    device = "cuda" if fleet.gpus_per_worker else "cpu"
    if rates.machine.device != device:
        raise RequestError(
            f"--gpus-per-worker={fleet.gpus_per_worker} plans for {device}, {place} has rates of machine.device="
            f"{rates.machine.device}; rates cannot be converted between devices (`fsl-dist bench rates` on such a "
            "machine)"
        )
    wanted = {
        "backbone.name": (config.backbone.name, rates.work.backbone),
        "data.image_size": (config.data.image_size, rates.work.image_size),
        "training.precision": (
            "bf16" if config.training.uses_bf16(device) else "float32",
            rates.work.precision,
        ),
    }
    if config.backbone.embedding_dim:
        wanted["backbone.embedding_dim"] = (config.backbone.embedding_dim, rates.work.embedding_dim)
    if config.mining.source == "dataset":
        wanted["index.kind"] = (config.index.kind, rates.work.index_kind)
    for key, (own, measured) in wanted.items():
        if own != measured:
            raise RequestError(
                f"{key}={own}, and {place} was measured with {measured}; rates belong to one configuration "
                "(`fsl-dist bench rates --config F` with this one)"
            )
    if config.mining.is_beside and device == "cuda" and config.mining.gpus == 0:
        raise RequestError(
            f"mining.gpus=0 embeds on the CPU, {place} has rates of a GPU (mining.gpus=1 plans an actor a GPU)"
        )
