"""One worker or two, the same training: real processes, gloo between them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsl_dist.training.runlog import read_metrics
from index.storage import Owner

pytestmark = pytest.mark.integration

WORKER = Path(__file__).parents[1] / "helpers" / "train_worker.py"


def run_workers(task: str, world_size: int, scratch: Path, settings: list[str]) -> Path:
    """Run `world_size` workers to their end; returns the file they may have written."""
    scratch.mkdir(parents=True, exist_ok=True)
    run = scratch / "run"
    Owner.claim(run)
    out = scratch / "out.npz"
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                str(WORKER),
                task,
                str(rank),
                str(world_size),
                str(scratch / "rendezvous"),
                str(out),
                f"run.dir={run}",
                *settings,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors[-3000:]
    return out


NETWORK = [
    "data.channels=1",
    "data.resize=exact",
    "data.resize_size=16",
    "data.image_size=16",
    "data.mean=[0.5]",
    "data.std=[0.5]",
    "data.flip=false",
    "data.decoder=torchvision",
    "backbone.name=conv4",
    "backbone.width=16",
    "training.patience=0",
    "evaluation.batch_size=32",
]
PCN = [
    "method.kind=pcn",
    "method.clusters=3",
    "method.temperature=1.0",
    "evaluation.delta_tau=[0]",
    "episode.n_way=5",
    "episode.k_shot=4",
    "episode.n_query=3",
    "episode.per_step=2",
    "episode.per_epoch=6",
]
DEEP_KNN = ["method.kind=deep_knn", "training.batch_size=66", "backbone.batch_norm_group=16"]

CASES = {
    "pcn, local episodes": [*PCN, "backbone.batch_norm=batch"],
    "pcn, one episode over all workers": [*PCN, "episode.scope=global", "episode.per_step=1"],
    "deep kNN, batch": DEEP_KNN,
    "deep kNN, dataset": [*DEEP_KNN, "mining.source=dataset"],
    "deep kNN, dataset, frozen batch norm": [
        *DEEP_KNN,
        "mining.source=dataset",
        "backbone.batch_norm=frozen",
    ],
    "cross entropy, weighted": [
        "method.kind=cross_entropy",
        "method.balance=weights",
        "training.batch_size=50",
        "backbone.batch_norm_group=10",
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_over_two_workers_is_the_plain_step(case: str, digits: Path, tmp_path: Path) -> None:
    settings = [f"data.dataset={digits}", *NETWORK, *CASES[case]]
    found = [
        np.load(
            run_workers(
                "step", world_size, tmp_path / str(world_size), [*settings, f"workers.num={world_size}"]
            )
        )
        for world_size in (1, 2)
    ]
    one, two = found
    assert np.linalg.norm(one["gradient"]) > 0
    relative = np.linalg.norm(one["gradient"] - two["gradient"]) / np.linalg.norm(one["gradient"])
    assert relative <= 1e-9
    assert abs(one["loss"] - two["loss"]) <= 1e-6 * abs(one["loss"])
    for name in set(one.files) - {"gradient", "loss"}:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6, atol=1e-6)


def test_training_on_two_workers_draws_and_learns_as_on_one(digits: Path, tmp_path: Path) -> None:
    settings = [f"data.dataset={digits}", *NETWORK, *PCN, "backbone.batch_norm=batch", "training.epochs=2"]
    curves = []
    for world_size in (1, 2):
        run_workers("train", world_size, tmp_path / str(world_size), [*settings, f"workers.num={world_size}"])
        lines = read_metrics(tmp_path / str(world_size) / "run")
        curves.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert len(curves[0]) == 6
    # float32: rounding grows with every step; k-means at the second epoch may round a near tie differently.
    np.testing.assert_allclose(curves[0][:3], curves[1][:3], rtol=1e-4)
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-2)


def test_two_workers_mine_what_brute_force_finds(digits: Path, tmp_path: Path) -> None:
    from fsl_dist.methods.neighbour_table import NeighbourTable
    from index import open_index

    settings = [f"data.dataset={digits}", *NETWORK, *DEEP_KNN, "mining.source=dataset", "training.images=66"]
    run_workers("train", 2, tmp_path, [*settings, "workers.num=2"])
    run = tmp_path / "run"
    index = open_index(run / "index" / "train")
    assert len(index.manifest.shard_starts) == 2
    (folder,) = (run / "mining").glob("step-00000000-*")
    same, other = NeighbourTable.open(folder, 2, 5, 0).rows(np.arange(index.num_vectors))
    vectors = index.vectors(0, index.num_vectors).astype(np.float64)
    row_of_id = {int(sample): row for row, sample in enumerate(index.ids)}
    for row in range(index.num_vectors):
        squared = ((vectors - vectors[row]) ** 2).sum(axis=1)
        is_same = index.labels == index.labels[row]
        for found, allowed in (
            (same[row], is_same & (np.arange(len(squared)) != row)),
            (other[row], ~is_same),
        ):
            best = np.sort(squared[allowed])[:5]
            mine = squared[[row_of_id[int(sample)] for sample in found]]
            assert all(allowed[row_of_id[int(sample)]] for sample in found)
            np.testing.assert_allclose(mine, best, rtol=1e-6)
