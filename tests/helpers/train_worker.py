"""One worker of a gloo group, as a process of its own: works through the cases of a JSON file.

    python train_worker.py CASES RANK WORLD_SIZE RENDEZVOUS

CASES maps a name to {"task": "step" | "train" | "poison", "out": file, "dtype": that of a step, "settings": [key=value, …]}.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from fsl_dist.config import load_config
from fsl_dist.data.loader import Loader
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import TrainingError
from fsl_dist.models.batch_norm import running_statistics
from fsl_dist.training.loop import Trainer
from fsl_dist.training.step import planned_steps, run_step, step_requests
from index.base.files import Owner


def take_step(trainer: Trainer, out: Path, dtype: torch.dtype) -> None:
    """Write gradient, loss, memory and running statistics after the run's first step, computed in `dtype`."""
    group, method = trainer.group, trainer.method
    if method.prepares_at(0, 0):
        trainer.train_index.move_to("start")
        method.prepare(0, 0, trainer.train_index, group)
    trainer.network.to(dtype)
    if hasattr(getattr(method, "memory", None), "means"):
        method.memory.means = method.memory.means.to(dtype)
    forward = (
        torch.nn.parallel.DistributedDataParallel(trainer.network, forward_sync_buffers=False)
        if group.world_size > 1
        else trainer.network
    )
    ghost_group = trainer.config.backbone.batch_norm_group
    requests = step_requests(
        method,
        0,
        range(1),
        group=group,
        is_ghost=trainer.is_ghost,
        ghost_group=ghost_group,
        chunk_size=trainer.config.training.chunk_size,
    )
    with Loader(trainer.source, requests, 1) as loader:
        planned, images = next(planned_steps(loader))
        converted = (some.to(dtype) for some in images)
        result = run_step(forward, method, planned, converted, group=group, device=trainer.device)
    trainer.statistics.average()
    method.finish_step(0, planned.batches, result.updates, group)
    kept = method.state()  # on all workers: it may gather
    if group.is_first:
        gradient = torch.cat([p.grad.reshape(-1) for p in trainer.network.parameters() if p.requires_grad])
        state = {name: value.numpy() for name, value in kept.items() if torch.is_tensor(value)}
        np.savez(
            out,
            gradient=gradient.numpy(),
            loss=result.metrics["train/loss"],
            ids=np.concatenate([batch.ids for batch in planned.batches]),
            statistics=torch.cat([s.reshape(-1) for s in running_statistics(trainer.network)]).numpy(),
            calls=[len(piece.calls) for piece in planned.pieces],
            **state,
        )


POISONED = 30
"""id of the sample whose pixels are NaN in a case "poison": one in the middle of a class"""


def train_poisoned(trainer: Trainer, out: Path) -> None:
    """Train on images of which one is NaN, as no decoder gives it, and write what stops this worker."""
    prepare = trainer.source.prepare

    def poison(raw: object, ids: np.ndarray, epoch: int | None) -> torch.Tensor:
        images = prepare(raw, ids, epoch)
        images[torch.from_numpy(ids == POISONED)] = torch.nan
        return images

    trainer.source.prepare = poison
    try:
        trainer.train()
    except TrainingError as error:
        out.with_suffix(f".{trainer.group.rank}").write_text(str(error))


def main() -> None:
    """Join the group, do every case, leave."""
    cases, rank, world_size, rendezvous = sys.argv[1:]
    torch.set_num_threads(1)
    if int(world_size) > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world_size)
        )
    group = WorkerGroup.current()
    for case in json.loads(Path(cases).read_text()).values():
        config = load_config(None, case["settings"])
        if group.is_first:
            Owner.claim(Path(config.run.dir))
        group.barrier()
        owner = Owner(Path(config.run.dir), 1)
        trainer = Trainer(config, group=group, device=torch.device("cpu"), owner=owner)
        if case["task"] == "train":
            trainer.train()
        elif case["task"] == "poison":
            train_poisoned(trainer, Path(case["out"]))
        else:
            take_step(trainer, Path(case["out"]), getattr(torch, case["dtype"]))
        group.barrier()
    if group.world_size > 1:
        dist.destroy_process_group()
    # Results are in files. One of a pair of workers was once aborted at the interpreter's own end ("terminate called
    # without an active exception"), after both had left the group.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
