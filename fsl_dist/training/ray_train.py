"""The Ray side of training: one Trainer in each Ray Train worker. Everything else is plain PyTorch."""

import logging
from pathlib import Path

from fsl_dist.config import RunConfig, parse_config, render_config
from fsl_dist.errors import FslDistError, RequestError, TrainingError
from index.storage import Owner

log = logging.getLogger(__name__)


def train_on_ray(config: RunConfig, owner: Owner) -> None:
    """Train `config` with Ray Train on the Ray cluster this process is connected to.

    A worker that dies restarts all of them from the last checkpoint, up to `workers.max_failures` times. Raises
    RequestError when the cluster cannot hold the workers, and a worker's own error otherwise.
    """
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    workers = config.workers
    resources = ray.cluster_resources()
    use_gpu = workers.gpu == "auto" and resources.get("GPU", 0) >= workers.num
    needed = workers.num * workers.cpus
    if resources.get("CPU", 0) < needed:
        raise RequestError(
            f"workers.num={workers.num} with workers.cpus={workers.cpus} needs {needed} CPU cores; the Ray cluster has "
            f"{resources.get('CPU', 0):g} (fewer workers, or a larger cluster)"
        )
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": render_config(config),
            "owner": (str(owner.folder.resolve()), owner.epoch),
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(workers.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=workers.num, use_gpu=use_gpu, resources_per_worker={"CPU": workers.cpus}
        ),
        run_config=RayRunConfig(
            name=f"claim-{owner.epoch:08d}",
            storage_path=str((Path(config.run.dir) / "ray").resolve()),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = failure if isinstance(failure, FslDistError) else failure.__cause__
            if isinstance(cause, FslDistError):
                raise cause from error
        raise TrainingError(f"a training worker failed: {_last_line(error)}") from error
    except TrainingFailedError as error:
        raise TrainingError(f"Ray Train failed: {_last_line(error)}") from error


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
