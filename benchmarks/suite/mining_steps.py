"""A training step of deep kNN with neighbours in the memory of all embeddings, next to one with neighbours in the
batch.

The memory is filled with synthetic rows, so that a million images need not be embedded; everything else is what the
training loop runs: network, loss, backward pass, optimizer, and the overwriting of the step's rows.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.suite.interleave import interleave
from benchmarks.suite.report import BenchOptions, Table, Target, timing_table
from benchmarks.suite.train_steps import Found
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.methods.deep_knn import BatchMining, DeepKNNConfig, Neighbours
from fsl_dist.methods.method import MethodContext
from fsl_dist.methods.mining.config import MiningConfig
from fsl_dist.methods.mining.embedding_memory import EmbeddingMemory
from fsl_dist.methods.mining.in_memory import MemoryMining
from fsl_dist.models.backbones import build_network
from fsl_dist.models.batch_norm import apply_batch_norm
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.embedding import Network
from fsl_dist.samplers.episode import EpisodeConfig
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.optimizer import build_optimizer
from fsl_dist.training.step import PlannedStep, deal_pieces, run_step
from index.config import IndexConfig, Kind
from index.runtime import keep_freed_memory

BATCH_SIZE, _GHOST_GROUP = 96, 32
_CENTRES = 200  # around which the modes of all classes are, so that classes are neighbours
_MODES, _SPREAD = 20, 0.7  # of a class; of a mode, as a multiple of its centre's length
_CPU = torch.device("cpu")
_ALONE = WorkerGroup()
BATCH, MEMORY = "neighbours in the batch", "neighbours in the memory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, a memory, and what the memory's step may cost."""

    label: str
    """stable: the recorded bounds of `make bench-smoke` go by it"""
    network: str
    channels: int
    size: int
    """pixels of a side"""
    dim: int
    num_rows: int
    num_classes: int
    k_same: Neighbours
    m_other: Neighbours
    kind: Kind
    """index.kind"""
    steps: int
    """of a round"""
    at_most: float | None
    """bound of a step's time over that of batch mining"""

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.network} at {self.size} px, N {self.num_rows:,}, K {self.k_same}, M {self.m_other}, {self.kind}"


_CONV4 = Case(label="Conv4, all rows", network="conv4", channels=1, size=28, dim=64, num_rows=20_000, num_classes=50, k_same="all", m_other="all",
              kind="flat", steps=10, at_most=1.5)  # fmt: skip
_MOBILENET = Case(label="MobileNetV2, few rows", network="mobilenet_v2", channels=3, size=224, dim=256, num_rows=100_000, num_classes=1_000, k_same=5,
                  m_other=50, kind="flat", steps=1, at_most=1.1)  # fmt: skip
CASES = (
    _CONV4,
    dataclasses.replace(
        _CONV4,
        label="Conv4, an index's rows",
        num_rows=1_000_000,
        num_classes=1_000,
        k_same=20,
        m_other=1_000,
        kind="ivf_flat",
    ),
    _MOBILENET,
    dataclasses.replace(
        _MOBILENET, label="MobileNetV2, an index's rows", num_rows=1_000_000, kind="ivf_flat", at_most=None
    ),
)
SMOKE_CASES = (
    dataclasses.replace(_CONV4, num_rows=4_000),
    dataclasses.replace(
        _CONV4, label="Conv4, an index's rows", num_rows=20_000, k_same=20, m_other=200, kind="ivf_flat"
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """What is trained on, without images: a long tail of classes, and an embedding of each image."""

    selection: Selection
    vectors: Tensor
    """float32 [N, D], of length 1"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Labels:
    """All that deep kNN asks of a catalogue."""

    labels: NDArray[np.int64]


def measure_steps(cases: tuple[Case, ...], options: BenchOptions) -> Found:
    """Each case's steps of both minings in turn, and how long the memory took to fill."""
    keep_freed_memory()  # as a training process does
    found, filled = Found(), []
    for case in cases:
        rows = _make_rows(case)
        network = _Placed(case)
        memory = _build(case, rows, options.folder, "dataset")
        assert isinstance(memory, MemoryMining)
        started = time.perf_counter()
        memory.memory = EmbeddingMemory(
            rows.selection,
            case.dim,
            group=_ALONE,
            device=_CPU,
            index=IndexConfig(kind=case.kind),
            most_bytes=1e10,
        )
        memory.memory.fill(rows.vectors, 0)
        filled.append((case.name, time.perf_counter() - started))
        contenders = {
            BATCH: _steps(case, rows, network, _build(case, rows, options.folder, "batch")),
            MEMORY: _steps(case, rows, network, memory),
        }
        measured = interleave(contenders, unit="step", rounds=options.rounds)
        found.tables.append(timing_table(case.name, measured, base=BATCH))
        found.targets.append(
            Target(
                f"mining: memory step ÷ batch step, {case.label}",
                measured.ratios(MEMORY, BATCH),
                at_most=case.at_most,
                is_guarded=case.at_most is not None,
                remark=case.name,
            )
        )
    columns = ("", "the rows copied, and clusters made, s")
    found.tables.append(Table("Filling the memory, without embedding the images", columns, tuple(filled)))
    return found


def _make_rows(case: Case) -> _Rows:
    """Class c has a share 1 / c of the images, and 20 modes, each near one of 200 centres that the classes share."""
    draw = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, case.num_classes + 1)
    more = draw.choice(case.num_classes, case.num_rows - 2 * case.num_classes, p=shares / shares.sum())
    labels = np.sort(np.concatenate([np.repeat(np.arange(case.num_classes), 2), more]))
    torch.manual_seed(0)
    centres = torch.randn(_CENTRES, case.dim)[
        torch.from_numpy(draw.integers(_CENTRES, size=case.num_classes * _MODES))
    ]
    modes = functional.normalize(centres + _SPREAD * torch.randn(len(centres), case.dim), dim=1)
    mode = labels * _MODES + draw.integers(_MODES, size=case.num_rows)
    vectors = torch.randn(case.num_rows, case.dim).mul_(_SPREAD / case.dim**0.5)
    vectors.add_(torch.nn.functional.embedding(torch.from_numpy(mode), modes))
    vectors.div_(vectors.norm(dim=1, keepdim=True))
    return _Rows(Selection.from_sorted(np.arange(case.num_rows), labels), vectors)


class _Placed(nn.Module):
    """A network whose embeddings are near given rows.

    Those of an untrained network are all alike: no cluster of an index would be looked into but one.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        settings = BackboneConfig(name=case.network, embedding_dim=case.dim)
        shape = (case.channels, case.size, case.size)
        self.network: Network = build_network(settings, sample_shape=shape, normalise=True)
        apply_batch_norm(self.network, "ghost")
        self.optimizer = build_optimizer(self.network, TrainingConfig())
        self.images = torch.randn(BATCH_SIZE, *shape).contiguous(memory_format=torch.channels_last)
        self.rows = torch.zeros(BATCH_SIZE, case.dim)
        """float32 [B, D], in the order in which the images are forwarded"""

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings float32 [B, D] of length 1."""
        return functional.normalize(self.rows[: len(images)] + 0.1 * self.network(images), dim=1)


def _build(case: Case, rows: _Rows, folder: Path, source: Literal["batch", "dataset"]) -> BatchMining:
    labels = rows.selection.sample_labels
    context = MethodContext(
        catalogue=cast(Catalogue, _Labels(labels)),
        selection=rows.selection,
        dataset="synthetic rows",
        folder=folder,
        seed=0,
        num_workers=1,
        batch_size=BATCH_SIZE,
        kmeans_runs=1,
        episode=EpisodeConfig(),
        mining=MiningConfig(source=source),
        device=_CPU,
    )
    method = DeepKNNConfig(k_same=case.k_same, m_other=case.m_other).build(context)
    assert isinstance(method, BatchMining)
    return method


def _steps(case: Case, rows: _Rows, network: _Placed, method: BatchMining) -> Callable[[], float]:
    """A contender: each call takes the run's next steps, as the training loop does."""
    done = 0

    def step() -> None:
        nonlocal done
        batches = method.batches(*divmod(done, method.num_steps()))
        pieces = deal_pieces(
            batches, is_global=True, rank=0, world_size=1, is_ghost=True, ghost_group=_GHOST_GROUP
        )
        places = batches[0].payload
        assert isinstance(places, np.ndarray)
        network.rows = rows.vectors[torch.from_numpy(places[pieces[0].positions])]
        network.optimizer.zero_grad(set_to_none=True)
        planned = PlannedStep(done, batches, pieces)
        images = network.images[: len(batches[0].ids)]
        result = run_step(network, method, planned, iter([images]), group=_ALONE, device=_CPU)
        network.optimizer.step()
        method.finish_step(done, batches, result.updates, _ALONE)
        done += 1

    def go() -> float:
        for _ in range(case.steps):
            step()
        return case.steps

    return go
