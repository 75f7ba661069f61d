"""fsl-dist's loader, sampler and loss in your own training function, with Ray Train or without.

python examples/own_trainer.py DATASET [NUM_WORKERS]
"""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import fsl_dist


def train(settings: dict) -> list[float]:
    """Deep kNN with neighbours out of the batch; returns the loss of each of this worker's steps."""
    is_alone = not distributed.is_initialized()
    rank, world_size = (0, 1) if is_alone else (distributed.get_rank(), distributed.get_world_size())
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    data = fsl_dist.data.DataConfig(dataset=settings["dataset"], image_size=28, resize_size=32)
    source = fsl_dist.data.open_source(data, seed=0, device=device)
    selection = source.catalogue.select("train")
    # Any module that embeds images would do. Each step every worker takes a batch of its own.
    torch.manual_seed(0)
    network: torch.nn.Module = fsl_dist.models.build_network(
        fsl_dist.models.BackboneConfig(name="conv4"), sample_shape=source.sample_shape
    ).to(device)
    network = network if is_alone else DistributedDataParallel(network)
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-3), []
    steps = range(rank, settings["num_steps"] * world_size, world_size)
    requests = (
        fsl_dist.data.Request(
            fsl_dist.samplers.stratified_batch(selection, batch_size=64, seed=0, epoch=0, step=step), 0
        )
        for step in steps
    )
    for request, images in fsl_dist.data.Loader(source, requests):
        ids = torch.from_numpy(request.ids).to(device)
        labels = torch.from_numpy(source.catalogue.labels[request.ids]).to(device)
        embeddings = network(images)
        same, other = fsl_dist.losses.batch_neighbours(embeddings, labels, ids, num_same=5, num_other=5)
        anchors = torch.arange(len(ids), device=device)
        loss, _ = fsl_dist.losses.deep_knn_loss(embeddings, anchors, same, other, margin=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    source.close()
    return losses


def train_and_tell(settings: dict) -> None:
    """What a Ray worker runs."""
    losses = train(settings)
    print(f"worker {distributed.get_rank()}: loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")


if __name__ == "__main__":
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    num_workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    TorchTrainer(
        train_and_tell,
        train_loop_config={"dataset": str(Path(sys.argv[1]).resolve()), "num_steps": 30},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=torch.cuda.is_available()),
    ).fit()
