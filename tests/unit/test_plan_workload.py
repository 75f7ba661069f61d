"""What a plan counts is what the samplers draw and the training step deals out."""

from pathlib import Path

import pytest
import torch

from cluster.planning.workload import count_workload
from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.methods.method import EpochPlan, EpochSize, Method, MethodContext, MethodSettings
from fsl_dist.models.batch_norm import resolve_batch_norm
from fsl_dist.training.splits import split_run
from fsl_dist.training.step import deal_pieces

PCN = [
    "method.kind=pcn",
    "episode.n_way=5",
    "episode.k_shot=4",
    "episode.n_query=3",
    "episode.per_epoch=7",
]
CASES = {
    "episodes, one a worker": PCN,
    "episodes, three a step": [*PCN, "episode.per_step=3"],
    "episodes, global": [*PCN, "episode.per_step=2", "episode.scope=global"],
    "episodes, global, frozen": [
        *PCN,
        "episode.per_step=1",
        "episode.scope=global",
        "backbone.batch_norm=frozen",
    ],
    "episodes, chunks": [*PCN, "episode.per_step=3", "training.chunk_size=32"],
    "scatter": ["method.kind=scatter", *PCN[1:], "episode.per_step=4"],
    "batch": ["method.kind=deep_knn", "training.batch_size=50", "backbone.batch_norm_group=16"],
    "batch, chunks": [
        "method.kind=deep_knn",
        "training.batch_size=90",
        "backbone.batch_norm_group=10",
        "training.chunk_size=20",
    ],
    "batch, one group": [
        "method.kind=few_shot_nca",
        "training.batch_size=60",
        "backbone.batch_norm_group=96",
    ],
    "cross entropy": [
        "method.kind=cross_entropy",
        "training.batch_size=40",
        "backbone.batch_norm=frozen",
    ],
    "batch, pretrained": ["method.kind=deep_knn", "training.batch_size=50", "backbone.pretrained=true"],
    "batch hard": ["method.kind=batch_hard", "training.batch_size=33", "backbone.batch_norm_group=8"],
}


def configured(digits: Path, settings: list[str], workers: int) -> RunConfig:
    return load_config(
        None, [f"data.dataset={digits}", "training.patience=0", f"workers.num={workers}", *settings]
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_what_is_counted_is_what_is_dealt(digits: Path, name: str, workers: int) -> None:
    config = configured(digits, CASES[name], workers)
    catalogue = Catalogue.open(digits)
    train = split_run(catalogue, config).train
    method = config.build_method(catalogue, train, torch.device("cpu"))
    found = count_workload(config, len(train), workers)
    assert found.steps == method.num_steps()
    assert found.is_global == method.is_global
    batches = method.batches(0, 0)
    assert found.step_images == sum(len(batch.ids) for batch in batches)
    mode = resolve_batch_norm(
        config.backbone.batch_norm,
        is_global=method.is_global,
        is_chunked=config.training.chunk_size > 0,
        has_weights=config.backbone.starts_from_weights,
    )
    dealt = [
        deal_pieces(
            batches,
            is_global=method.is_global,
            rank=rank,
            world_size=workers,
            is_ghost=mode == "ghost",
            ghost_group=config.backbone.batch_norm_group,
            chunk_size=config.training.chunk_size,
        )
        for rank in range(workers)
    ]
    rows = [sum(piece.num_rows for piece in pieces) for pieces in dealt]
    assert found.share == max(rows)
    assert found.busy == sum(row > 0 for row in rows)
    assert found.loads == (2 if any(piece.is_cached for pieces in dealt for piece in pieces) else 1)


def test_mining_counts_anchors(digits: Path) -> None:
    settings = [
        "method.kind=deep_knn",
        "method.k_same=5",
        "method.m_other=5",
        "mining.source=dataset",
        "mining.neighbours=decoded",
        "training.batch_size=50",
    ]
    config = configured(digits, settings, 2)
    catalogue = Catalogue.open(digits)
    train = split_run(catalogue, config).train
    method = config.build_method(catalogue, train, torch.device("cpu"))
    found = count_workload(config, len(train), 2)
    assert (found.steps, found.step_images) == (method.num_steps(), 44)  # 4 anchors of 11 images
    assert (found.refresh, found.refreshes) == ("mining", 1)
    often = configured(digits, [*settings, "mining.refresh_steps=10"], 2)
    assert count_workload(often, len(train), 2).refreshes == found.steps / 10
    in_memory = configured(digits, ["method.kind=deep_knn", "mining.source=dataset", "training.epochs=4"], 2)
    assert count_workload(in_memory, len(train), 2).refreshes == 1 / 4  # the first pass only


def test_triplets_are_three_images(digits: Path) -> None:
    settings = ["method.kind=chai", "method.triplets=90", "training.batch_size=40", "backbone.map_head=8"]
    config = configured(digits, [*settings, "backbone.name=conv4"], 1)
    found = count_workload(config, 120, 1)
    assert (found.steps, found.step_images, found.refresh) == (3, 120, "none")


def test_refreshes_of_prototypes(digits: Path) -> None:
    assert count_workload(configured(digits, PCN, 1), 120, 1).refresh == "prototypes"
    alone = [*PCN, "method.clusters=1", "method.memory=0"]
    assert count_workload(configured(digits, alone, 1), 120, 1).refresh == "none"


def test_a_method_from_elsewhere_takes_a_batch_a_step_unless_it_counts_itself() -> None:
    import dataclasses
    from typing import Literal

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Center(MethodSettings):
        kind: Literal["center"] = "center"

        def build(self, context: MethodContext) -> Method:
            raise AssertionError("a plan builds no method")

    class Pairs(Center):
        def count_epoch(self, plan: EpochPlan) -> EpochSize:
            return EpochSize(plan.num_images // 2, 1, 2, is_global=False)

    def found(method: MethodSettings) -> tuple[int, int, bool, str]:
        config = dataclasses.replace(load_config(None, ["training.batch_size=30"]), method=method)
        work = count_workload(config, 100, 1)
        return work.steps, work.step_images, work.is_global, work.refresh

    assert found(Center()) == (4, 30, True, "none")
    assert found(Pairs()) == (50, 2, False, "none")
