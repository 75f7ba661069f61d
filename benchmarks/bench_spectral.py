"""Spectral clustering over the neighbour index against scikit-learn's SpectralClustering, both in one run.

    python benchmarks/bench_spectral.py
    python benchmarks/bench_spectral.py --run runs/omniglot-characters-scatter

By default, the data are 160 classes of 50 vectors around class centres, the size of tiered-ImageNet's test classes,
at several overlaps; with --run, the vectors that `fsl-dist evaluate RUN` has kept. Both cluster by 10 neighbours and
the best of 10 k-means starts, on one thread. Seconds are CPU seconds, which other work on the machine does not
lengthen. scikit-learn computes its eigenvectors in every run, ours once for all runs.

Prints a Markdown table, then one JSON object.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import scipy
import sklearn
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from fsl_dist.metrics.clustering import find_clusters
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.metrics.spectral import neighbour_affinity, spectral_embedding
from index import LocalIndex, open_index
from index.writing.build import build

SETTINGS = EvaluationConfig()


def draw_classes(classes: int, images: int, dim: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [classes · images, dim] around unit normal centres, and labels int64."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), images)
    centres = rng.standard_normal((classes, dim))
    noise = spread * rng.standard_normal((len(labels), dim))
    return (centres[labels] + noise).astype(np.float32), labels


def time_ours(index: LocalIndex, num_clusters: int, seeds: int) -> dict[str, object]:
    """CPU seconds of each part, and the ARI of every seed."""
    started = time.process_time()
    affinity = neighbour_affinity(index, SETTINGS.spectral_neighbors)
    found = time.process_time()
    points = spectral_embedding(affinity, num_clusters, seed=0)
    embedded = time.process_time()
    aris = [
        adjusted_rand_score(
            index.labels,
            find_clusters(points, num_clusters, starts=SETTINGS.kmeans_runs, random_state=seed),
        )
        for seed in range(seeds)
    ]
    ended = time.process_time()
    return {
        "graph_s": found - started,
        "eigenvectors_s": embedded - found,
        "kmeans_s": (ended - embedded) / seeds,
        "one_run_s": embedded - started + (ended - embedded) / seeds,
        "all_runs_s": ended - started,
        "ari": aris,
    }


def time_theirs(index: LocalIndex, num_clusters: int, seeds: int) -> dict[str, object]:
    """CPU seconds of one run of scikit-learn's, and the ARI of every seed."""
    vectors = index.vectors(0, index.num_vectors)
    aris, seconds = [], []
    for seed in range(seeds):
        started = time.process_time()
        clustering = SpectralClustering(
            num_clusters,
            affinity="nearest_neighbors",
            n_neighbors=SETTINGS.spectral_neighbors,
            n_init=SETTINGS.kmeans_runs,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a graph in several parts, where there is one
            aris.append(adjusted_rand_score(index.labels, clustering.fit_predict(vectors)))
        seconds.append(time.process_time() - started)
    return {"one_run_s": float(np.mean(seconds)), "ari": aris}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run that `fsl-dist evaluate` has scored")
    parser.add_argument("--classes", type=int, default=160)
    parser.add_argument("--images", type=int, default=50, help="of a class")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--spreads", type=float, nargs="+", default=[1.0, 1.6, 1.8])
    parser.add_argument("--seeds", type=int, default=5, help="runs of ours")
    parser.add_argument("--sklearn-seeds", type=int, default=1, help="runs of scikit-learn's")
    options = parser.parse_args()
    results = []
    print(
        "| data | parts | ours: graph s | eigenvectors s | k-means s a run | runs | all s | ARI | scikit-learn: "
        "one run s | ARI |"
    )
    print("| --- |" + " ---: |" * 9)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1):
        if options.run:
            indexes = {str(options.run): options.run / "evaluation" / "test"}
        else:
            indexes = {
                f"{options.classes} × {options.images}, spread {spread:g}": build(
                    Path(folder) / f"{spread}",
                    *draw_classes(options.classes, options.images, options.dim, spread),
                )
                for spread in options.spreads
            }
        for name, path in indexes.items():
            index = open_index(path)
            num_clusters = len(np.unique(index.labels))
            ours = time_ours(index, num_clusters, options.seeds)
            theirs = time_theirs(index, num_clusters, options.sklearn_seeds)
            graph = neighbour_affinity(index, SETTINGS.spectral_neighbors)
            parts = scipy.sparse.csgraph.connected_components(graph, directed=False)[0]
            print(
                f"| {name} | {parts} | {ours['graph_s']:.1f} | {ours['eigenvectors_s']:.1f} | {ours['kmeans_s']:.1f} "
                f"| {options.seeds} | {ours['all_runs_s']:.1f} | {show(ours['ari'])} "
                f"| {theirs['one_run_s']:.1f} | {show(theirs['ari'])} |",
                flush=True,
            )
            results.append({"data": name, "parts": parts, "ours": ours, "scikit-learn": theirs})
    report = {
        "benchmark": "spectral",
        "options": {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
        },
        "results": results,
        "machine": {"cpu": platform.processor() or platform.machine()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    print("\n" + json.dumps(report))


def show(aris: object) -> str:
    """ "0.912 ± 0.004" """
    values = np.asarray(aris)
    return f"{values.mean():.3f} ± {values.std():.3f}" if len(values) > 1 else f"{values[0]:.3f}"


if __name__ == "__main__":
    main()
