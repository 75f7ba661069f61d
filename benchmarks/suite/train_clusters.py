"""PCN's clustering compared with scikit-learn in a loop, its share of an epoch, and the embedding pass before it."""

import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.suite.interleave import interleave
from benchmarks.suite.report import Table, Target, timing_table
from benchmarks.suite.train_setup import BenchData, make_trainer
from benchmarks.suite.train_steps import Found
from cluster.planning.machine_rates import load_steps
from fsl_dist.methods.pcn import PCN
from fsl_dist.methods.prototypes import fit_each_class
from fsl_dist.samplers.episode import Episode

Vectors = NDArray[np.float32]
OURS, SKLEARN = "fsl-dist", "scikit-learn, class by class"
_STARTS = 10


@dataclass(frozen=True, slots=True)
class _Case:
    """Classes of some sizes, each to be clustered."""

    name: str
    sizes: tuple[int, ...]
    dim: int
    clusters: int


CASES = (
    _Case("35 classes of 600 × 64, 10 clusters (Omniglot's alphabets)", (600,) * 35, 64, 10),
    _Case("40 classes of 11…2000 × 256, 10 clusters (a long tail)",
          tuple(np.geomspace(11, 2000, 40).astype(int).tolist()), 256, 10),
    _Case("150 classes of 5 × 64, 4 clusters (a draw's novel support)", (5,) * 150, 64, 4),
)  # fmt: skip
SMOKE_CASES = (
    _Case("6 classes of 300 × 64, 10 clusters", (300,) * 6, 64, 10),
    _Case("30 classes of 5 × 64, 4 clusters", (5,) * 30, 64, 4),
)


def _draw_classes(case: _Case) -> list[tuple[int, Vectors]]:
    """Overlapping modes, 15 a class, off the origin, as embeddings are."""
    found = []
    for label, size in enumerate(case.sizes):
        rng = np.random.default_rng(label)
        modes = rng.normal(size=(15, case.dim))
        points = 5 + modes[rng.integers(15, size=size)] + rng.normal(size=(size, case.dim))
        found.append((label, points.astype(np.float32)))
    return found


def _by_sklearn(classes: list[tuple[int, Vectors]], clusters: int) -> list[Vectors]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = []
    for label, vectors in classes:
        kmeans = KMeans(min(clusters, len(vectors)), n_init=_STARTS, random_state=label)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            means.append(kmeans.fit(vectors).cluster_centers_)
    return means


def _inertia(vectors: Vectors, means: Vectors) -> float:
    return float(
        torch.cdist(torch.from_numpy(vectors).double(), torch.tensor(means).double())
        .min(1)
        .values.square()
        .sum()
    )


def measure_clustering(cases: tuple[_Case, ...], *, rounds: int) -> Found:
    """Prototypes of all classes, by `fit_each_class` and by scikit-learn's KMeans in a loop, both on all cores."""
    found = Found()
    for case in cases:
        found.add(_measure_case(case, rounds))
    return found


def _measure_case(case: _Case, rounds: int) -> Found:
    classes = _draw_classes(case)
    fitted: dict[str, list[Vectors]] = {}

    def ours() -> int:
        fitted[OURS] = fit_each_class(classes, case.clusters, seed=0, epoch=0, starts=_STARTS)
        return len(classes)

    def by_sklearn() -> int:
        fitted[SKLEARN] = _by_sklearn(classes, case.clusters)
        return len(classes)

    measured = interleave({OURS: ours, SKLEARN: by_sklearn}, unit="class", rounds=rounds)
    ratios = [
        _inertia(vectors, one) / _inertia(vectors, other)
        for (_, vectors), one, other in zip(classes, fitted[OURS], fitted[SKLEARN], strict=True)
    ]
    short = case.name.partition(",")[0]
    return Found(
        [timing_table(f"k-means: {case.name}", measured, base=SKLEARN)],
        [
            Target(f"k-means of {short} / scikit-learn", measured.ratios(OURS, SKLEARN), at_most=1.0),
            Target(f"inertia of {short} / scikit-learn's, class by class", ratios, at_most=1.005,
                   remark=f"mean {statistics.mean(ratios):.4f}"),
        ],
    )  # fmt: skip


def measure_epoch(data: BenchData, *, folder: Path, rounds: int, steps: int, sizes: tuple[int, ...]) -> Found:
    """Clustering and merging as a share of an epoch of 200 PCN episodes with Conv4, without the pass that embeds.

    The clusterings are of `sizes` vectors per class, the sizes of a real data set; step and merge are timed in turn.
    """
    trainer = make_trainer(data.config("conv4", "pcn", folder / "epoch", ["method.clusters=10"]))
    planned, (images,) = load_steps(trainer, 0, 1)[0][0]
    classes = _draw_classes(_Case("", sizes, 64, 10))
    method = trainer.method
    assert isinstance(method, PCN)
    episode = planned.batches[0].payload
    assert isinstance(episode, Episode)
    shape = (len(episode.classes), method.memory.means.shape[1])
    update = (torch.randn(*shape, method.memory.means.shape[2]), torch.rand(*shape))
    shares, rows = [], []
    for _ in range(rounds + 1):
        times = []
        for do, repeats in (
            (lambda: trainer.take_step(planned, iter([images])), steps),
            (lambda: method.finish_step(0, planned.batches, [(0, update)], trainer.group), 20 * steps),
            (lambda: fit_each_class(classes, 10, seed=0, epoch=0, starts=_STARTS), 1),
        ):  # fmt: skip
            started = time.perf_counter()
            for _ in range(repeats):
                do()
            times.append((time.perf_counter() - started) / repeats)
        step, merge, fit = times
        shares.append((200 * merge + fit) / (200 * step + fit))
        rows.append((200 * step, 200 * merge, fit))
    step, merge, fit = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    return Found(
        [
            Table(
                f"An epoch of 200 episodes of {len(images)} images, Conv4, {len(sizes)} classes of {sizes[0]} images",
                ("", "s"),
                (
                    ("200 steps", round(step, 2)),
                    ("of which merging the memory", round(merge, 3)),
                    ("clustering at its start", round(fit, 2)),
                ),
            )
        ],
        [Target("clustering and merging / PCN epoch", shares[1:], at_most=0.05)],
    )


def measure_pass(data: BenchData, *, folder: Path, rounds: int) -> Found:
    """The embedding pass of a PCN epoch and its index, compared with `Embedder.embed` of the same images."""
    trainer = make_trainer(data.config("resnet18", "pcn", folder / "pass"))
    ids, turn = trainer.splits.train.ids, iter(range(10**6))

    def open_index() -> int:
        trainer.train_index.move_to(f"turn-{next(turn)}")
        trainer.train_index.open()
        return len(ids)

    measured = interleave(
        {"pass of an epoch": open_index, "Embedder.embed": lambda: len(trainer.embedder.embed(ids))},
        unit="image",
        rounds=rounds,
    )
    ratios = measured.ratios("pass of an epoch", "Embedder.embed")
    return Found(
        [
            timing_table(
                "Embedding all training images with ResNet18 at 64 px", measured, base="Embedder.embed"
            )
        ],
        [Target("embedding pass / Embedder.embed", ratios, at_most=1.05, is_guarded=False)],
    )
