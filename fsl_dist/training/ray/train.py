"""The Ray part of training: one Trainer in each Ray Train worker. Everything else is plain PyTorch."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl_dist.config import RunConfig, parse_config, render_config
from fsl_dist.errors import CapacityError, FslDistError, TrainingError
from fsl_dist.training.ray.capacity import capacity_timeout_s, wait_for_capacity
from fsl_dist.training.ray.mining import Miners, beside_training
from fsl_dist.training.ray.stopping import hear, passing_on
from index.base.extras import require
from index.base.files import Owner
from index.base.object_cache import place_of
from index.base.stopping import StopRequest

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from fsl_dist.training.loop import Watch

log = logging.getLogger(__name__)

_LOST_NODE_S = 300.0
"""Seconds for which a run waits for a node that it lost, unless the environment says otherwise."""


def train_on_ray(
    config: RunConfig, owner: Owner, watch: "Watch | None" = None, stop: StopRequest | None = None
) -> bool:
    """Train `config` with Ray Train on the Ray cluster to which this process is connected;
    return whether `stop` ended it.

    If a worker dies, all workers restart from the last checkpoint, up to `workers.max_failures` times. Each restart
    makes a new claim, so that a worker that only seemed dead can no longer write. watch: may end the run after a
    validation; it is passed to the first worker, in another process. Raises CapacityError if the cluster is too small
    for the workers, and at once any error that a worker itself found, since a restart would not help.
    """
    require("ray")
    stop = stop or StopRequest()
    fitted = _fit_to_cluster(config, stop, capacity_timeout_s(), needs_gpu=False)
    with passing_on(stop) as bell:
        return _train_again(config, owner, fitted, watch, bell, stop)


def _train_again(
    config: RunConfig,
    owner: Owner,
    fitted: tuple[RunConfig, bool],
    watch: "Watch | None",
    bell: Any,
    stop: StopRequest,
) -> bool:
    """Train, and restart after a worker died; return whether the workers stopped on request."""
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError

    sized, use_gpu = fitted
    for failures_left in range(config.workers.max_failures, -1, -1):
        try:
            with beside_training(sized, owner) as miners:
                _build_trainer(sized, owner, use_gpu, miners, watch, bell).fit()
        except TrainingFailedError as error:
            if found := _own_error(error):
                raise found from error
            if failures_left == 0:
                raise TrainingError(f"a training worker failed: {_last_line(error)}") from error
            log.warning("a worker failed (%s); resuming from the last checkpoint", _last_line(error))
            owner = Owner.claim(owner.folder)
            sized, use_gpu = _fit_to_cluster(
                config, stop, capacity_timeout_s(_LOST_NODE_S), needs_gpu=use_gpu
            )
        else:
            break
    return bool(ray.get(bell.has_stopped.remote()))


def _fit_to_cluster(
    config: RunConfig, stop: StopRequest, timeout_s: float, *, needs_gpu: bool
) -> tuple[RunConfig, bool]:
    """The run with as many workers as the cluster has room for (`workers.num`; after the timeout at least
    `workers.min`), and whether each gets a GPU.

    Raises CapacityError or FslDistError when the cluster is too small, Stopped.
    """

    def whole() -> tuple[RunConfig, bool]:
        return config, _check_resources(config, needs_gpu=needs_gpu)

    def smaller() -> tuple[RunConfig, bool]:
        num = _count_fitting(config, needs_gpu=needs_gpu)
        if not 0 < config.workers.min <= num < config.workers.num:
            return whole()
        # Workers of a run that went through Ray still do, however few there are.
        workers = dataclasses.replace(config.workers, num=num, min=0, launch="ray")
        sized = dataclasses.replace(config, workers=workers)
        use_gpu = _check_resources(sized, needs_gpu=needs_gpu)
        log.warning(
            "the cluster has room for %d of workers.num=%d workers: training with them, with the same batches and "
            "learning rate (workers.min=%d)",
            *(num, config.workers.num, config.workers.min),
        )
        return sized, use_gpu

    return wait_for_capacity(whole, timeout_s=timeout_s, stop=stop, otherwise=smaller)


def _count_fitting(config: RunConfig, *, needs_gpu: bool) -> int:
    """Number of workers that fit on the nodes of the cluster, next to the mining actors."""
    import ray

    workers, mining = config.workers, config.mining
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    use_gpu = needs_gpu or (workers.gpu == "auto" and any(node.get("GPU", 0) for node in nodes))
    fits = 0
    for node in nodes:
        of_node = int(node.get("CPU", 0) // workers.cpus)
        fits += min(of_node, int(node.get("GPU", 0))) if use_gpu else of_node
    beside = -(-mining.actors * mining.cpus // workers.cpus) if mining.is_beside else 0
    return max(0, fits - beside)


def _check_resources(config: RunConfig, *, needs_gpu: bool) -> bool:
    """Whether the workers get a GPU each; raises CapacityError when the cluster is too small for them.

    needs_gpu: the run had GPUs before a node was lost, so no GPU at all means that more nodes are missing.
    """
    import ray

    workers, mining, resources = config.workers, config.mining, ray.cluster_resources()
    beside = f" and mining.actors={mining.actors} with mining.cpus={mining.cpus}" if mining.is_beside else ""
    if resources.get("CPU", 0) < config.num_cpus:
        raise CapacityError(
            f"workers.num={workers.num} with workers.cpus={workers.cpus}{beside} needs {config.num_cpus} CPU cores; "
            f"the Ray cluster has {resources.get('CPU', 0):g} (fewer of them, or a larger cluster)"
        )
    gpus = resources.get("GPU", 0)
    for_mining = mining.actors * mining.gpus if mining.is_beside else 0
    if for_mining > gpus:
        raise CapacityError(
            f"mining.actors={mining.actors} with mining.gpus={mining.gpus:g} needs {for_mining:g} GPUs; the Ray "
            f"cluster has {gpus:g} (mining.gpus=0 embeds on the CPU)"
        )
    if workers.gpu == "never" or (gpus == 0 and not needs_gpu):
        return False
    if gpus - for_mining < workers.num:
        raise CapacityError(
            f"workers.num={workers.num} needs a GPU each; the Ray cluster has {gpus - for_mining:g} for them "
            "(workers.gpu=never trains on the CPU)"
        )
    return True


def _build_trainer(
    config: RunConfig, owner: Owner, use_gpu: bool, miners: Miners | None, watch: "Watch | None", bell: Any
) -> "TorchTrainer":
    from ray.train import RunConfig as RayRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from fsl_dist.training.ray.network import InterfaceTorchConfig

    class _Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Nothing: Ray's handler aborts the workers where ours has them finish their step."""

    workers = config.workers
    return _Trainer(
        _train_worker,
        train_loop_config={
            "config": render_config(config),
            "owner": (str(owner.folder), owner.epoch),
            "miners": miners,
            "watch": watch,
            "bell": bell,
        },
        torch_config=InterfaceTorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=int(workers.timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=workers.num, use_gpu=use_gpu, resources_per_worker={"CPU": workers.cpus}
        ),
        run_config=RayRunConfig(
            name=f"claim-{owner.epoch:08d}", storage_path=_ray_folder(Path(config.run.dir))
        ),
    )


def _ray_folder(run: Path) -> str:
    """The folder for Ray Train's own state: every node must see it."""
    place = place_of(run / "ray")
    return str((run / "ray").resolve()) if place is None else place.arrow_uri


def _own_error(error: "TrainingFailedError") -> FslDistError | None:
    """The first error of this project among the workers' failures, at any depth of Ray's wrappers."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, FslDistError):
                return cause
            cause = cause.__cause__
    return None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _train_worker(settings: dict) -> None:
    """What each Ray Train worker runs."""
    import ray
    import ray.train.torch
    import torch

    from fsl_dist.distributed import WorkerGroup
    from fsl_dist.training.loop import Trainer
    from index.runtime import flushing_denormals

    logging.getLogger("fsl_dist").setLevel(logging.INFO)
    folder, epoch = settings["owner"]
    # The configuration is validated again: a worker's installation may differ from the driver's.
    config = parse_config(settings["config"], [], "the driver's configuration")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=folder))
    stop = hear(settings["bell"])
    with flushing_denormals(torch.set_flush_denormal):
        trainer = Trainer(
            config,
            group=WorkerGroup.current(),
            device=ray.train.torch.get_device(),
            owner=Owner(Path(folder), epoch),
            miners=settings["miners"],
            watch=settings["watch"],
            stop=stop,
        )
        trainer.train()
    if trainer.has_stopped and trainer.group.is_first:
        ray.get(settings["bell"].note_stopped.remote())
