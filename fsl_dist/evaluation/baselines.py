"""Classifiers of frozen features without a network: plain kNN, NCA and LMNN (deep kNN Table 3)."""

import dataclasses
import time
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.data.loader import FeatureSource, describe_samples
from fsl_dist.errors import RequestError
from fsl_dist.heads.lmnn import fit_lmnn, target_scale
from fsl_dist.metrics.knn import score_knn
from fsl_dist.training.splits import split_run
from index import open_index
from index.base.scratch import scratch_folder
from index.vectors import check_vectors
from index.writing.build import build

Baseline = Literal["knn", "nca", "lmnn"]

DEFAULT_PCA = 64
"""default number of dimensions for fitting NCA and LMNN"""
_MAX_ITERATIONS = 100


@dataclasses.dataclass(frozen=True, slots=True)
class BaselineReport:
    """The scores of a classifier on frozen features."""

    baseline: str
    features: str
    dim: int
    """dimensions after PCA, or the features' own"""
    dataset: str
    split: str
    """split of the queries: test, otherwise val"""
    metrics: dict[str, float]
    """fractions in 0 … 1, named as in `EvaluationReport`"""
    fit_s: float
    """seconds for PCA and the fit"""


def evaluate_baseline(baseline: Baseline, config: RunConfig, *, pca: int | None = None) -> BaselineReport:
    """Fit `baseline` on the train split of the features in `config.data`, and score the queries by kNN.

    NCA and LMNN are linear maps to the same number of dimensions, fitted by at most 100 iterations of L-BFGS from the
    identity; nothing is random. The cost of both grows with the square of the training images, and so does NCA's memory
    (8 bytes per pair).

    Args:
        baseline: the method.
        config: configuration of the data and the evaluation.
        pca: number of principal components of the train split on which the features are projected first; 0: no
            projection; None: none for knn, otherwise 64 or the largest possible number.

    Raises:
        RequestError: the features or the data set are not suitable.
    """
    catalogue, _ = describe_samples(config.data)
    splits = split_run(catalogue, config)
    if splits.query is None:
        raise RequestError(f"data.dataset={config.data.dataset} has no test and no val split to query with")
    source = FeatureSource(catalogue, config.data.features)
    gallery, queries = (source.fetch(part.ids, None).numpy() for part in (splits.gallery, splits.query))
    for part in (gallery, queries):
        check_vectors(part, f"features={config.data.features}")
    labels = splits.gallery.sample_labels
    started = time.perf_counter()
    mapped, mapped_queries = _map(
        baseline, gallery, labels, queries, _choose_pca(baseline, pca, gallery.shape)
    )
    fit_s = time.perf_counter() - started
    with scratch_folder("fsl-baseline-") as folder:
        index = open_index(build(folder / "gallery", mapped, labels))
        metrics = score_knn(index, mapped_queries, splits.query.sample_labels, config.evaluation.k_p)
    return BaselineReport(
        baseline,
        config.data.features,
        mapped.shape[1],
        config.data.dataset,
        splits.query_split,
        metrics,
        round(fit_s, 1),
    )


def _choose_pca(baseline: Baseline, pca: int | None, shape: tuple[int, ...]) -> int:
    most = min(shape)
    if pca is None:
        return 0 if baseline == "knn" else min(DEFAULT_PCA, most)
    if not 0 <= pca <= most:
        raise RequestError(
            f"pca={pca} must be in 0 … {most}, the smaller of {shape[0]} training images and {shape[1]} "
            "dimensions of a feature (0 uses the features as they are)"
        )
    return pca


def _map(
    baseline: Baseline,
    gallery: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    pca: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gallery and queries float32 [n, dim] as the baseline compares them."""
    if pca == 0 and baseline == "knn":
        return gallery, queries
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NeighborhoodComponentsAnalysis

    vectors, wanted = gallery.astype(np.float64), queries.astype(np.float64)
    if pca > 0:
        components = PCA(pca, svd_solver="covariance_eigh").fit(vectors)
        vectors, wanted = components.transform(vectors), components.transform(wanted)
    # One number for all: it changes no neighbour, but both fits start from the identity, LMNN with a margin of 1 and
    # NCA with exponentials of squared distances.
    scale = target_scale(vectors, labels)
    vectors, wanted = vectors / scale, wanted / scale
    match baseline:
        case "knn":
            transform = np.eye(vectors.shape[1])
        case "lmnn":
            transform = fit_lmnn(vectors, labels, max_iterations=_MAX_ITERATIONS).transform
        case "nca":
            fit = NeighborhoodComponentsAnalysis(init="identity", max_iter=_MAX_ITERATIONS, tol=1e-6)
            transform = fit.fit(vectors, labels).components_
    return (vectors @ transform.T).astype(np.float32), (wanted @ transform.T).astype(np.float32)
