"""The Ray part of training: one Trainer in each Ray Train worker. Everything else is plain PyTorch."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl_dist.config import RunConfig, parse_config, render_config
from fsl_dist.errors import FslDistError, RequestError, TrainingError
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


def train_on_ray(
    config: RunConfig, owner: Owner, watch: "Watch | None" = None, stop: StopRequest | None = None
) -> bool:
    """Train `config` with Ray Train on the Ray cluster to which this process is connected;
    return whether `stop` ended it.

    If a worker dies, all workers restart from the last checkpoint, up to `workers.max_failures` times. Each restart
    makes a new claim, so that a worker that only seemed dead can no longer write. watch: may end the run after a
    validation; it is passed to the first worker, in another process. Raises RequestError if the cluster is too small
    for the workers, and at once any error that a worker itself found, since a restart would not help.
    """
    require("ray")
    use_gpu = _check_resources(config)
    with passing_on(stop or StopRequest()) as bell:
        return _train_again(config, owner, use_gpu, watch, bell)


def _train_again(config: RunConfig, owner: Owner, use_gpu: bool, watch: "Watch | None", bell: Any) -> bool:
    """Train, and restart after a worker died; return whether the workers stopped on request."""
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError

    for failures_left in range(config.workers.max_failures, -1, -1):
        try:
            with beside_training(config, owner) as miners:
                _build_trainer(config, owner, use_gpu, miners, watch, bell).fit()
        except TrainingFailedError as error:
            if found := _own_error(error):
                raise found from error
            if failures_left == 0:
                raise TrainingError(f"a training worker failed: {_last_line(error)}") from error
            log.warning("a worker failed (%s); resuming from the last checkpoint", _last_line(error))
            owner = Owner.claim(owner.folder)
        else:
            break
    return bool(ray.get(bell.has_stopped.remote()))


def _check_resources(config: RunConfig) -> bool:
    """Whether the workers get a GPU each; raises RequestError when the cluster is too small for them."""
    import ray

    workers, mining, resources = config.workers, config.mining, ray.cluster_resources()
    beside = f" and mining.actors={mining.actors} with mining.cpus={mining.cpus}" if mining.is_beside else ""
    if resources.get("CPU", 0) < config.num_cpus:
        raise RequestError(
            f"workers.num={workers.num} with workers.cpus={workers.cpus}{beside} needs {config.num_cpus} CPU cores; "
            f"the Ray cluster has {resources.get('CPU', 0):g} (fewer of them, or a larger cluster)"
        )
    gpus = resources.get("GPU", 0)
    for_mining = mining.actors * mining.gpus if mining.is_beside else 0
    if for_mining > gpus:
        raise RequestError(
            f"mining.actors={mining.actors} with mining.gpus={mining.gpus:g} needs {for_mining:g} GPUs; the Ray "
            f"cluster has {gpus:g} (mining.gpus=0 embeds on the CPU)"
        )
    if workers.gpu == "never" or gpus == 0:
        return False
    if gpus - for_mining < workers.num:
        raise RequestError(
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
    import dataclasses

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
