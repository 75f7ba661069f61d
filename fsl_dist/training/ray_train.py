"""The Ray side of training: one Trainer in each Ray Train worker. Everything else is plain PyTorch."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fsl_dist.config import RunConfig, parse_config, render_config
from fsl_dist.errors import FslDistError, RequestError, TrainingError
from index.storage import Owner

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

log = logging.getLogger(__name__)


def train_on_ray(config: RunConfig, owner: Owner) -> None:
    """Train `config` with Ray Train on the Ray cluster this process is connected to.

    When a worker dies, all start again from the last checkpoint, up to `workers.max_failures` times, each time
    under a new claim, so that a worker that only seemed dead writes nothing. Raises RequestError when the cluster
    cannot hold the workers, and at once what a worker itself found wrong: trying again would not mend that.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    use_gpu = _check_resources(config)
    for failures_left in range(config.workers.max_failures, -1, -1):
        try:
            _build_trainer(config, owner, use_gpu).fit()
        except TrainingFailedError as error:
            if found := _own_error(error):
                raise found from error
            if failures_left == 0:
                raise TrainingError(f"a training worker failed: {_last_line(error)}") from error
            log.warning("a worker failed (%s); going on from the last checkpoint", _last_line(error))
            owner = Owner.claim(owner.folder)
        else:
            return


def _check_resources(config: RunConfig) -> bool:
    """Whether the workers get a GPU each; raises RequestError when the cluster is too small for them."""
    import ray

    workers, resources = config.workers, ray.cluster_resources()
    needed = workers.num * workers.cpus
    if resources.get("CPU", 0) < needed:
        raise RequestError(
            f"workers.num={workers.num} with workers.cpus={workers.cpus} needs {needed} CPU cores; the Ray cluster "
            f"has {resources.get('CPU', 0):g} (fewer workers, or a larger cluster)"
        )
    gpus = resources.get("GPU", 0) if workers.gpu == "auto" else 0
    if 0 < gpus < workers.num:
        raise RequestError(
            f"workers.num={workers.num} needs a GPU each; the Ray cluster has {gpus:g} (workers.gpu=never trains on "
            "the CPU)"
        )
    return gpus > 0


def _build_trainer(config: RunConfig, owner: Owner, use_gpu: bool) -> "TorchTrainer":
    from ray.train import RunConfig as RayRunConfig
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = config.workers
    return TorchTrainer(
        _train_worker,
        train_loop_config={"config": render_config(config), "owner": (str(owner.folder), owner.epoch)},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(workers.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=workers.num, use_gpu=use_gpu, resources_per_worker={"CPU": workers.cpus}
        ),
        run_config=RayRunConfig(
            name=f"claim-{owner.epoch:08d}", storage_path=str((Path(config.run.dir) / "ray").resolve())
        ),
    )


def _own_error(error: "TrainingFailedError") -> FslDistError | None:
    """The first of our own errors among the workers' failures, however deep Ray wrapped it."""
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

    import ray.train.torch

    from fsl_dist.training.distributed import WorkerGroup
    from fsl_dist.training.loop import Trainer

    logging.getLogger("fsl_dist").setLevel(logging.INFO)
    folder, epoch = settings["owner"]
    # The configuration passes the gate again: a worker's installation may differ from the driver's.
    config = parse_config(settings["config"], [], "the driver's configuration")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=folder))
    trainer = Trainer(
        config,
        group=WorkerGroup.current(),
        device=ray.train.torch.get_device(),
        owner=Owner(Path(folder), epoch),
    )
    trainer.train()
