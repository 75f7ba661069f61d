"""Why ARI may disagree with purity: how large the clusters of a run's test images are.

    python benchmarks/cluster_sizes.py RUN …

Runs that `fsl-dist evaluate` has scored are clustered once by k-means and once spectrally, as in the evaluation. The
table has the images in the largest and in the median cluster, the classes in the largest, and the ARI of all images
and of those outside the largest cluster. A pair of images counts once in ARI, so a cluster of n images weighs as n².
"""

import argparse
from pathlib import Path

import numpy as np

from fsl_dist.metrics.clustering import cluster_scores, find_clusters
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.metrics.spectral import neighbour_affinity, spectral_embedding
from index import open_index

SETTINGS = EvaluationConfig()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    print("| run | clusters by | largest | classes in it | median | ARI | ARI outside the largest |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for run in parser.parse_args().runs:
        index = open_index(run / "evaluation" / "test")
        labels = np.asarray(index.labels)
        num_clusters = len(np.unique(labels))
        vectors = index.vectors(0, index.num_vectors)
        spectral = spectral_embedding(
            neighbour_affinity(index, SETTINGS.spectral_neighbors), num_clusters, seed=0
        )
        for name, points, starts in (("k-means", vectors, 1), ("spectral", spectral, SETTINGS.kmeans_runs)):
            clusters = find_clusters(points, num_clusters, starts=starts, random_state=0)
            sizes = np.bincount(clusters, minlength=num_clusters)
            inside = clusters == sizes.argmax()
            print(
                f"| {run} | {name} | {sizes.max()} | {len(np.unique(labels[inside]))} | {np.median(sizes):.0f} "
                f"| {100 * cluster_scores(clusters, labels)['ari']:.1f} "
                f"| {100 * cluster_scores(clusters[~inside], labels[~inside])['ari']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
