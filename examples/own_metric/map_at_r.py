"""A custom metric: mean average precision at R (Musgrave, Belongie & Lim 2020)."""

import numpy as np
from numpy.typing import NDArray


def map_at_r(
    gallery: NDArray[np.float32],
    gallery_labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    query_labels: NDArray[np.int64],
) -> dict[str, float]:
    """Precision at each hit among a query's R nearest, averaged over R: the number of gallery images of its class.

    gallery: float32 [N, dim]; gallery_labels: int64 [N]; queries: float32 [n, dim]; query_labels: int64 [n].
    """
    precisions = []
    for query, label in zip(queries, query_labels, strict=True):
        relevant = int((gallery_labels == label).sum())
        if relevant:
            distances = np.square(gallery - query).sum(axis=1)
            hits = gallery_labels[np.argsort(distances, kind="stable")[:relevant]] == label
            precisions.append((np.cumsum(hits) / np.arange(1, relevant + 1) * hits).sum() / relevant)
    return {"map@r": float(np.mean(precisions))}
