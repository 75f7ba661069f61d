"""k-means of one class, all starts at once: many small clusterings in succession, each in a few matrix products.

The starts of a class share their points, so each round of Lloyd's algorithm is two products for all of them. Converged
starts drop out. scikit-learn, one start at a time, took 3 to 7 times as long at the same inertia on classes of 5 to
2,000 images, since most of its time is call overhead.
"""

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]

# scikit-learn's settings: a start has settled when no label changes or its centres move less than this share of the
# points' variance, and after this many rounds.
_TOLERANCE, _MOST_ROUNDS = 1e-4, 300
# Starts are taken together while their distances are at most this many: float32, 64 MiB.
_DISTANCES_AT_A_TIME = 2**24


def cluster_means(
    points: NDArray[np.float64], num_clusters: int, starts: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the cluster means of the best of `starts` starts: float64 [m, D], 1 ≤ m ≤ num_clusters.

    Greedy k-means++ (Arthur & Vassilvitskii 2007, the best of 2 + ln K candidates for each centre), then Lloyd's
    algorithm; the smallest sum of squared distances wins. A cluster without points keeps its centre and is removed at
    the end. Distances are float32 on centred and scaled points, the means float64. Deterministic if BLAS has one
    thread.

    points: [n, D], finite, n ≥ num_clusters ≥ 2.
    """
    centred = points - points.mean(axis=0)
    scale = np.abs(centred).max()
    scaled = (centred / (scale if scale > 0 else 1.0)).astype(np.float32)
    squares = np.einsum("nd,nd->n", scaled, scaled)
    at_a_time = max(1, _DISTANCES_AT_A_TIME // (num_clusters * len(points)))
    best: tuple[float, NDArray[np.int32]] | None = None
    for first in range(0, starts, at_a_time):
        centres = _choose_centres(scaled, squares, num_clusters, min(at_a_time, starts - first), rng)
        labels, inertias = _settle(scaled, squares, centres)
        winner = int(inertias.argmin())
        if best is None or inertias[winner] < best[0]:
            best = float(inertias[winner]), labels[winner]
    assert best is not None
    used = np.unique(best[1])
    return np.stack([points[best[1] == label].mean(axis=0) for label in used])


def _choose_centres(
    points: Floats32, squares: Floats32, num_clusters: int, starts: int, rng: np.random.Generator
) -> Floats32:
    """Greedy k-means++: float32 [starts, num_clusters, D], each a point."""
    num, every, trials = len(points), np.arange(starts), 2 + int(np.log(num_clusters))
    chosen = np.empty((starts, num_clusters), dtype=np.int64)
    chosen[:, 0] = rng.integers(num, size=starts)
    nearest = _distances(
        points, squares, points[chosen[:, 0]]
    )  # [starts, num], to the nearest centre chosen so far
    for place in range(1, num_clusters):
        shares = np.cumsum(nearest, axis=1, dtype=np.float64)
        shares /= np.where(shares[:, -1:] > 0, shares[:, -1:], 1.0)
        # One search for all starts: start s has the keys s … s + 1.
        draws = (rng.random((starts, trials)) + every[:, None]).ravel()
        found = np.searchsorted((shares + every[:, None]).ravel(), draws, side="right").reshape(
            starts, trials
        )
        candidates = np.clip(found - num * every[:, None], 0, num - 1)
        distances = _distances(points, squares, points[candidates.ravel()]).reshape(starts, trials, num)
        np.minimum(distances, nearest[:, None], out=distances)
        winners = distances.sum(axis=2).argmin(axis=1)
        nearest, chosen[:, place] = distances[every, winners], candidates[every, winners]
    return points[chosen]


def _settle(
    points: Floats32, squares: Floats32, centres: Floats32
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Lloyd's algorithm from `centres` [starts, K, D]: int32 labels [starts, n] and float64 inertias [starts]."""
    starts, num_clusters, dim = centres.shape
    tolerance = _TOLERANCE * points.var(axis=0, dtype=np.float64).mean()
    numbers = np.arange(num_clusters, dtype=np.int32)
    labels = np.full((starts, len(points)), -1, dtype=np.int32)
    moving = np.arange(starts)
    for _ in range(_MOST_ROUNDS):
        found, _ = _assign(points, squares, centres[moving])
        is_new = (found != labels[moving]).any(axis=1)
        labels[moving] = found
        found, moving = found[is_new], moving[is_new]
        before = centres[moving]
        is_member = (found[:, None] == numbers[:, None]).astype(np.float32)  # [moving, K, n]
        counts = is_member.sum(axis=2)[..., None]
        sums = (is_member.reshape(-1, len(points)) @ points).reshape(-1, num_clusters, dim)
        after = np.where(counts > 0, sums / np.maximum(counts, 1), before)
        centres[moving] = after
        moving = moving[np.square(after - before).sum(axis=(1, 2)) > tolerance]
        if len(moving) == 0:
            break
    return _assign(points, squares, centres)


def _assign(
    points: Floats32, squares: Floats32, centres: Floats32
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Each point's nearest of `centres` [starts, K, D], the first of equals: labels [starts, n], inertias [starts]."""
    starts, num_clusters, dim = centres.shape
    distances = _distances(points, squares, centres.reshape(-1, dim)).reshape(starts, num_clusters, -1)
    nearest = distances[:, 0].copy()
    labels = np.zeros(nearest.shape, dtype=np.int32)
    # Cluster by cluster along the points: argmin over the middle axis takes 4 times as long.
    for number in range(1, num_clusters):
        labels[distances[:, number] < nearest] = number
        np.minimum(nearest, distances[:, number], out=nearest)
    return labels, nearest.sum(axis=1, dtype=np.float64)


def _distances(points: Floats32, squares: Floats32, centres: Floats32) -> Floats32:
    """Squared distances float32 [m, n] of centres [m, D] to points [n, D], whose squared lengths are known."""
    distances = centres @ points.T
    distances *= -2.0
    distances += np.einsum("md,md->m", centres, centres)[:, None]
    distances += squares
    return np.maximum(distances, 0.0, out=distances)
