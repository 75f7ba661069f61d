"""How large the embeddings of trained runs are, and how many directions their classes span.

    python benchmarks/embedding_scale.py RUN …

Over the training images:

- the mean norm;
- the mean distance between two images, of 2,000 pairs that are the same for every run: a margin is read next to it;
- within / between: the mean squared distance of an image to its class mean over that of a class mean to the overall
  mean;
- directions: (Σλ)² / Σλ² of the eigenvalues λ of the class means' covariance. It is 1 if all class means are on one
  line, and the number of dimensions if they spread equally in all.
"""

import argparse
from pathlib import Path

import numpy as np

from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_trained

NUM_PAIRS = 2000


def spread_of_classes(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Within / between and directions of vectors [n, dim] with labels [n]."""
    points = vectors.astype(np.float64)
    classes, inverse = np.unique(labels, return_inverse=True)
    means = np.stack([points[inverse == c].mean(axis=0) for c in range(len(classes))])
    within = np.square(points - means[inverse]).sum(axis=1).mean()
    between = np.square(means - means.mean(axis=0)).sum(axis=1).mean()
    eigenvalues = np.linalg.eigvalsh(np.cov(means.T))
    return within / between, eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    print("| run | mean norm | mean distance of two images | within / between | directions |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for run in parser.parse_args().runs:
        trained = open_trained(run)
        splits = split_run(trained.catalogue, trained.config)
        index = open_selection(trained, trained.config, "gallery", splits.gallery)
        vectors = index.vectors(0, index.num_vectors)
        rng = np.random.default_rng(0)
        first, second = (rng.integers(len(vectors), size=NUM_PAIRS) for _ in range(2))
        distance = np.linalg.norm(vectors[first] - vectors[second], axis=1).mean()
        ratio, directions = spread_of_classes(vectors, np.asarray(index.labels))
        print(
            f"| {run} | {np.linalg.norm(vectors, axis=1).mean():.1f} | {distance:.1f} | {ratio:.3f} | "
            f"{directions:.1f} |"
        )
        trained.embedder.source.close()


if __name__ == "__main__":
    main()
