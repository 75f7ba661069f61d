"""One worker of a gloo group, as a process of its own: trains, or takes one step and writes its gradient.

python train_worker.py TASK RANK WORLD_SIZE RENDEZVOUS OUT KEY=VALUE…
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from fsl_dist.config import load_config
from fsl_dist.data.loader import Loader
from fsl_dist.training.distributed import WorkerGroup
from fsl_dist.training.loop import Trainer
from fsl_dist.training.step import planned_steps, run_step, step_requests
from index.storage import Owner


def train(trainer: Trainer, out: Path) -> None:
    """Train to the end."""
    trainer.train()


def step(trainer: Trainer, out: Path) -> None:
    """Gradient, loss and memory after the first step of the run, in float64."""
    group, method = trainer.group, trainer.method
    trainer.network.double()
    if method.prepares_at(0, 0):
        trainer.train_index.move_to("start")
        method.prepare(0, 0, trainer.train_index, group)
    if hasattr(method, "means"):
        method.means = method.means.double()
    ghost_group = trainer.config.backbone.batch_norm_group
    requests = step_requests(
        method, 0, range(1), group=group, is_ghost=trainer.is_ghost, ghost_group=ghost_group
    )
    with Loader(trainer.source, requests, 1) as loader:
        planned, loaded = next(iter(planned_steps(loader)))
        loaded = [(piece, images.double()) for piece, images in loaded]
        result = run_step(trainer.forward, method, planned, loaded, group=group, device=trainer.device)
    method.finish_step(0, planned.batches, result.updates, group)
    if group.is_first:
        gradient = torch.cat([p.grad.reshape(-1) for p in trainer.network.parameters()])
        state = {name: value.numpy() for name, value in method.state().items() if torch.is_tensor(value)}
        np.savez(out, gradient=gradient.numpy(), loss=result.metrics["train/loss"], **state)


def main() -> None:
    """Join the group, do the task, leave."""
    task, rank, world_size, rendezvous, out = sys.argv[1:6]
    torch.set_num_threads(1)
    if int(world_size) > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world_size)
        )
    config = load_config(None, sys.argv[6:])
    owner = Owner(Path(config.run.dir), 1)
    trainer = Trainer(config, group=WorkerGroup.current(), device=torch.device("cpu"), owner=owner)
    {"train": train, "step": step}[task](trainer, Path(out))
    if int(world_size) > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
