"""How large the embeddings of trained runs are: mean norm, and mean distance between two training images.

    python benchmarks/embedding_scale.py RUN …

A margin says nothing without the distances it is added to. 2,000 pairs of training images are drawn, the same for every run.
"""

import argparse
from pathlib import Path

import numpy as np

from fsl_dist.evaluation.report import open_selection
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_trained

NUM_PAIRS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    print("| run | mean norm | mean distance of two images |\n| --- | ---: | ---: |")
    for run in parser.parse_args().runs:
        trained = open_trained(run)
        splits = split_run(trained.catalogue, trained.config)
        index = open_selection(trained, trained.config, "gallery", splits.gallery)
        vectors = index.vectors(0, index.num_vectors)
        rng = np.random.default_rng(0)
        first, second = (rng.integers(len(vectors), size=NUM_PAIRS) for _ in range(2))
        distance = np.linalg.norm(vectors[first] - vectors[second], axis=1).mean()
        print(f"| {run} | {np.linalg.norm(vectors, axis=1).mean():.1f} | {distance:.1f} |")
        trained.embedder.source.close()


if __name__ == "__main__":
    main()
