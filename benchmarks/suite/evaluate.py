"""`python -m benchmarks.suite evaluate`: kNN and prototype scores, compared with scikit-learn and torch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.interleave import Clock, Measured, interleave
from benchmarks.suite.peers_evaluate import (
    knn_by_classifiers,
    knn_by_shared_graph,
    knn_by_torch,
    prototypes_by_torch,
)
from benchmarks.suite.report import BenchOptions, Report, Target, timing_table
from fsl_dist.errors import TrainingError
from fsl_dist.methods.prototypes import Prototypes, stack_prototypes
from fsl_dist.metrics.few_shot import draw_scores, positions_among
from fsl_dist.metrics.knn import score_knn
from fsl_dist.metrics.prototypes import rank_draws
from index import IndexConfig, Staging, open_index

_OURS = "fsl-dist"
_CLOCKS: tuple[Clock, ...] = ("wall", "cpu")
_REMARK = "fsl-dist ranks candidates by float64 distances, which takes a quarter of a search among 20,000 vectors, more among fewer"
_TEMPERATURES = {";dtau=-2": 1.0, "": 3.0, ";dtau=3": 6.0}
# Peers work in float32 and settle ties by the label: one query in a thousand may go the other way.
_MAX_DIFFERENCE = 2e-3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is scored."""

    gallery: int = 20_000
    queries: int = 5_000
    dim: int = 256
    classes: int = 200
    k_ps: tuple[int, ...] = (1, 3, 5, 7, 9, 20, 40)
    base: int = 150
    base_clusters: int = 10
    base_test: int = 20
    """test images of a base class"""
    novel: int = 50
    novel_clusters: int = 4
    novel_images: int = 25
    """images of a novel class that a draw's tests are taken from"""
    novel_test: int = 5
    draws: int = 10


_SMOKE = Sizes(gallery=4_000, queries=1_000, classes=50, base=40, base_test=10, novel=15, draws=10)


def measure(options: BenchOptions) -> Report:
    """Times of both; raises TrainingError where a peer's scores are not ours."""
    sizes = _SMOKE if options.is_smoke else Sizes()
    knn = _time("query", _knn_ways(options.folder, sizes), sizes.queries, "knn/acc@1", options.rounds)
    tests = sizes.draws * (sizes.base * sizes.base_test + sizes.novel * sizes.novel_test)
    prototypes = _time("image", _prototype_ways(sizes), tests, "mca/base_novel", options.rounds)
    targets = [
        Target(
            f"{what}: {clock} over {peer}",
            measured.ratios(_OURS, peer, clock),
            at_most=1.0,
            remark=_REMARK if peer.endswith("neighbours once") else "",
        )
        for what, measured in (("kNN", knn), ("prototypes", prototypes))
        for peer in measured.rounds
        if peer != _OURS
        for clock in _CLOCKS
    ]
    return Report(
        "evaluate",
        "The same scores of the same vectors: kNN over several K_p, prototypes over several draws and Δτ.",
        {
            "gallery": sizes.gallery, "queries": sizes.queries, "dim": sizes.dim, "classes": sizes.classes,
            "K_p": list(sizes.k_ps), "base classes": f"{sizes.base} × {sizes.base_clusters} prototypes",
            "novel classes": f"{sizes.novel} × {sizes.novel_clusters} prototypes", "draws": sizes.draws,
            "temperatures": list(_TEMPERATURES.values()), "rounds": options.rounds,
        },
        [
            timing_table("kNN scores over all K_p", knn, base=_OURS),
            timing_table("Prototype scores of all draws, per image and draw", prototypes, base=_OURS),
        ],
        targets,
        [
            "fsl-dist ranks by exact distances (kNN) and in float64 (prototypes) and computes more scores "
            "(RS; recall at 5 and 10 of three groups); the others work in float32. All get the same "
            "prototypes; `bench train` times k-means.",
            "With equal votes, scikit-learn and torch choose the smaller label, fsl-dist the nearest; results"
            " are therefore compared at K_p = 1.",
        ],
        is_smoke=options.is_smoke,
    )  # fmt: skip


def _time(
    unit: str, ways: dict[str, Callable[[], dict[str, float]]], units: int, score: str, rounds: int
) -> Measured:
    """All ways in turn, after their `score` was compared."""
    found = {name: way()[score] for name, way in ways.items()}
    wrong = {name: value for name, value in found.items() if abs(value - found[_OURS]) > _MAX_DIFFERENCE}
    if wrong:
        raise TrainingError(f"{score} is {found[_OURS]:.4f}, but {wrong}: the ways do not do the same work")

    def run(way: Callable[[], dict[str, float]]) -> int:
        way()
        return units

    return interleave(
        {name: functools.partial(run, way) for name, way in ways.items()}, unit=unit, rounds=rounds
    )


def _knn_ways(folder: Path, sizes: Sizes) -> dict[str, Callable[[], dict[str, float]]]:
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, sizes.classes + 1)  # a long tail
    labels = np.sort(rng.choice(sizes.classes, sizes.gallery, p=shares / shares.sum()))
    targets = rng.choice(sizes.classes, sizes.queries, p=shares / shares.sum())
    centres = rng.normal(size=(sizes.classes, sizes.dim))
    gallery, queries = (_scatter(centres[of], rng) for of in (labels, targets))
    config = IndexConfig(shards=1)
    staging = Staging.create(folder / "index", "bench")
    staging.write_shard(0, gallery, config.metric)
    staging.publish(labels, np.arange(sizes.gallery), config, {})
    index = open_index(folder / "index", verify=False, device="cpu")
    arguments = (gallery, labels, queries, targets, sizes.k_ps)
    return {
        _OURS: lambda: score_knn(index, queries, targets, sizes.k_ps),
        "scikit-learn, once per K_p": functools.partial(knn_by_classifiers, *arguments),
        "scikit-learn, neighbours once": functools.partial(knn_by_shared_graph, *arguments),
        "torch, neighbours once": functools.partial(knn_by_torch, *arguments),
    }


def _prototype_ways(sizes: Sizes) -> dict[str, Callable[[], dict[str, float]]]:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(sizes.base + sizes.novel, sizes.dim))

    def prototypes_of(labels: NDArray[np.int64], clusters: int) -> Prototypes:
        return stack_prototypes(
            [_scatter(np.repeat(centres[[k]], clusters, axis=0), rng) for k in labels], labels
        )

    base_labels, novel_classes = np.arange(sizes.base), sizes.base + np.arange(sizes.novel)
    test_labels = np.repeat(base_labels, sizes.base_test)
    novel_labels = np.repeat(novel_classes, sizes.novel_images)
    test, novel = _scatter(centres[test_labels], rng), _scatter(centres[novel_labels], rng)
    base = prototypes_of(base_labels, sizes.base_clusters)
    novels = [prototypes_of(novel_classes, sizes.novel_clusters) for _ in range(sizes.draws)]
    firsts = np.arange(sizes.novel)[:, None] * sizes.novel_images
    tests = [
        (firsts + rng.choice(sizes.novel_images, sizes.novel_test, replace=False)).ravel()
        for _ in range(sizes.draws)
    ]

    def ours() -> dict[str, float]:
        targets = positions_among(test_labels, base.labels)
        temperatures = list(_TEMPERATURES.values())
        ranks = rank_draws(test, targets, novel, novel_labels, tests, base, novels, temperatures)
        found: list[dict[str, float]] = []
        for rows, of_draw in zip(tests, ranks, strict=True):
            labels = np.concatenate([test_labels, novel_labels[rows]])
            scores: dict[str, float] = {}
            for ranks_at, suffix in zip(of_draw, _TEMPERATURES, strict=True):
                scores |= draw_scores(ranks_at, labels, len(test_labels), suffix)
            found.append(scores)
        return {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}

    arguments = ((test, test_labels), (novel, novel_labels), tests, base, novels, _TEMPERATURES)
    return {_OURS: ours, "torch, draw by draw": functools.partial(prototypes_by_torch, *arguments)}


def _scatter(centres: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Vectors about their classes' centres, so wide that some classes are taken for others."""
    return (centres + 3.5 * rng.normal(size=centres.shape)).astype(np.float32)
