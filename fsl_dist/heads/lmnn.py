"""Large margin nearest neighbour (LMNN): a linear map that moves vectors closer to their neighbours of the same class.

Weinberger & Saul, "Distance Metric Learning for Large Margin Nearest Neighbor Classification" (2009). Each vector has
fixed target neighbours: its nearest vectors of the same class before the map. The objective pulls them closer and
pushes away vectors of other classes that are within a margin of 1 of them, all in squared distances. Every evaluation
computes it exactly, over all such impostors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import RequestError
from index.exact.costs import Vectors
from index.exact.rounding import FLOAT64, squared_distance_error

Matrix = NDArray[np.float64]

# A block of rows is compared with all vectors: 2^21 distances of float64 are 16 MiB, and their impostors, K
# hinges each, 80 MiB at worst.
_PAIRS_AT_A_TIME = 2**21


@dataclass(frozen=True, slots=True)
class LMNNFit:
    """A fitted map and statistics of the fit."""

    transform: Matrix
    """float64 [dim, dim], L: vectors are mapped by x → L x"""
    objective: float
    """at the end"""
    start_objective: float
    """at L = identity"""
    iterations: int
    """of L-BFGS"""


def fit_lmnn(
    vectors: Matrix, labels: NDArray[np.int64], *, num_targets: int = 5, max_iterations: int = 100
) -> LMNNFit:
    """Minimise `lmnn_objective` over L by L-BFGS from the identity.

    vectors: float64 [n, dim], scaled so that a margin of 1 is meaningful (`target_scale`); labels: int64 [n].
    Deterministic. An evaluation costs matrix products for 2n² distances; there is about one evaluation per iteration.
    Raises RequestError if no class has two vectors.
    """
    from scipy.optimize import minimize

    targets = target_neighbours(vectors, labels, num_targets)
    if not (targets >= 0).any():
        raise RequestError("LMNN needs target neighbours: no class has two training images")
    dim = vectors.shape[1]

    def evaluate(flat: Matrix) -> tuple[float, Matrix]:
        value, gradient = lmnn_objective(flat.reshape(dim, dim), vectors, labels, targets)
        return value, gradient.ravel()

    start = np.eye(dim).ravel()
    found = minimize(
        evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": max_iterations, "ftol": 1e-6}
    )
    return LMNNFit(found.x.reshape(dim, dim), float(found.fun), evaluate(start)[0], int(found.nit))


def target_neighbours(vectors: Matrix, labels: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """Find each vector's `num` nearest others of its class: rows int64 [n, num], nearest first, −1 if there are fewer.

    vectors: float64 [n, dim]. Equal distances are ordered by row.
    """
    targets = np.full((len(vectors), num), -1, dtype=np.int64)
    held = Vectors(vectors, "l2")
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        width = min(num, len(members) - 1)
        if width == 0:
            continue
        points = vectors[members] - vectors[members].mean(axis=0)
        longest = np.sqrt(np.square(points).sum(axis=1).max())
        rounding = 4 * squared_distance_error(points.shape[1], longest, longest, FLOAT64)
        rows_at_once = max(1, _PAIRS_AT_A_TIME // len(members))
        for start in range(0, len(members), rows_at_once):
            rows = np.arange(start, min(start + rows_at_once, len(members)))
            distances = _squared_distances(points[rows], points)
            distances[np.arange(len(rows)), rows] = np.inf
            # Products are rounded: what may be among the nearest is compared once more, by differences.
            kth = np.partition(distances, width - 1, axis=1)[:, width - 1 : width]
            who, near = np.nonzero(distances <= kth + rounding)
            costs = held.costs(vectors[members[rows[who]]], members[near][:, None])[:, 0]
            order = np.lexsort((near, costs, who))
            place = np.arange(len(who)) - np.searchsorted(who, who)
            first = place < width
            targets[members[rows[who[first]]], place[first]] = members[near[order[first]]]
    return targets


def target_scale(vectors: Matrix, labels: NDArray[np.int64], num: int = 5) -> float:
    """Root mean square distance of the vectors to their `num` target neighbours; 1 if that is 0 or there are none."""
    targets = target_neighbours(vectors, labels, num)
    anchors, columns = np.nonzero(targets >= 0)
    if len(anchors) == 0:
        return 1.0
    differences = vectors[anchors] - vectors[targets[anchors, columns]]
    return float(np.sqrt(np.einsum("nd,nd->n", differences, differences).mean())) or 1.0


def lmnn_objective(
    transform: Matrix, vectors: Matrix, labels: NDArray[np.int64], targets: NDArray[np.int64]
) -> tuple[float, Matrix]:
    """Value and gradient, float64 [D, dim], at L = `transform` (float64 [D, dim]).

    With d(i, j) = ‖L(x_i − x_j)‖², over vectors i, their target neighbours j and all vectors l of other classes,
    divided by the number of pairs (i, j):

        ½ Σ_ij d(i, j) + ½ Σ_ijl [1 + d(i, j) − d(i, l)]₊

    vectors: float64 [n, dim]; labels: int64 [n]; targets: int64 [n, K], −1 for none.
    """
    vectors = vectors - vectors.mean(axis=0)
    mapped = vectors @ transform.T
    exists = targets >= 0
    differences = mapped[:, None] - mapped[targets]
    # −inf: a target that is not there has no impostors.
    to_target = np.where(exists, np.einsum("nkd,nkd->nk", differences, differences), -np.inf)
    value = to_target[exists].sum()
    # With w(a, b) the weight of d(a, b) in the sum, the gradient is 2 Σ w(a, b) L(x_a − x_b)(x_a − x_b)ᵀ.
    degree = np.zeros(len(vectors))
    crossed = np.zeros_like(transform)
    rows_at_once = max(1, _PAIRS_AT_A_TIME // len(vectors))
    for start in range(0, len(vectors), rows_at_once):
        block = slice(start, min(start + rows_at_once, len(vectors)))
        hinges, weights = _weigh_block(block, mapped, labels, targets, to_target)
        value += hinges
        degree += weights.sum(axis=0)
        degree[block] += weights.sum(axis=1)
        crossed += mapped[block].T @ (weights @ vectors) + (weights @ mapped).T @ vectors[block]
    gradient = 2.0 * ((mapped * degree[:, None]).T @ vectors - crossed)
    scale = 0.5 / exists.sum()
    return float(scale * value), scale * gradient


def _weigh_block(
    block: slice,
    mapped: Matrix,
    labels: NDArray[np.int64],
    targets: NDArray[np.int64],
    to_target: Matrix,
) -> tuple[float, Matrix]:
    """Sum of the hinges of the vectors in `block`, and the weights float64 [rows, n] of their distances to all."""
    distances = _squared_distances(mapped[block], mapped)
    distances[labels[block][:, None] == labels] = np.inf
    own, reach = targets[block], 1.0 + to_target[block]
    rows, impostors = np.nonzero(distances < reach.max(axis=1, keepdims=True))
    hinges = np.maximum(reach[rows] - distances[rows, impostors][:, None], 0.0)
    is_active = hinges > 0
    weights = np.zeros_like(distances)
    weights[rows, impostors] = -is_active.sum(axis=1)
    for column in range(own.shape[1]):
        there = np.flatnonzero(own[:, column] >= 0)
        num_active = np.bincount(rows, weights=is_active[:, column], minlength=len(own))
        weights[there, own[there, column]] += 1.0 + num_active[there]
    return float(hinges.sum()), weights


def _squared_distances(a: Matrix, b: Matrix) -> Matrix:
    """‖a_i − b_j‖², float64 [n, m], by matrix product: for points about the origin."""
    squares = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b)
    return np.maximum(squares - 2.0 * (a @ b.T), 0.0)
