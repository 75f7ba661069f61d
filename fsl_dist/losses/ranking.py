"""Who is nearest, or furthest, to each image of a batch: exact, and the same wherever it is computed."""

import torch
from torch import Tensor

from fsl_dist.losses.distances import squared_distances
from index.exact.rounding import FLOAT64, gamma, squared_distance_error

# Candidates are gathered as float64 [rows, candidates, dim] in pieces of 2^23 numbers, 64 MiB.
_NUMBERS_PER_CHUNK = 2**23


@torch.no_grad()
def rank_pairs(
    embeddings: Tensor, allowed: Tensor, ids: Tensor, num: int, *, furthest: bool = False
) -> Tensor:
    """Find each image's `num` nearest images among those it is `allowed`, or its furthest ones, by Euclidean distance.

    Distances are ranked by a float64 matrix product, and by direct differences in float64 if two of them are closer
    than the rounding of the product; equal distances are ordered by id. Costs n² distances by product, and n·num
    direct ones if needed.

    Args:
        embeddings: [n, D].
        allowed: bool [..., n, n], row by row.
        ids: int64 [n] sample ids.

    Returns:
        Positions int64 [..., n, num], nearest (or furthest) first, −1 if there are fewer. No gradient.
    """
    points, rows = embeddings.double(), len(embeddings)
    found = torch.full((*allowed.shape[:-1], num), -1, dtype=torch.int64, device=points.device)
    if num == 0 or rows == 0:
        return found
    sign = -1.0 if furthest else 1.0
    distances = squared_distances(points, points)
    # The order of two distances is uncertain if they differ by less than the errors of both and of the direct ones.
    rounding = 4 * _largest_error(points, distances)
    distances = (sign * distances).masked_fill(~allowed, float("inf"))
    # One more than requested: the last one may tie with its successor.
    nearest, candidates = distances.topk(min(num + 1, rows), dim=-1, largest=False)
    first = candidates.masked_fill(nearest.isinf(), -1)[..., :num]
    if bool((nearest.diff(dim=-1) <= rounding).any()):
        width = max(int(((distances <= nearest[..., :num][..., -1:] + rounding) & allowed).sum(-1).max()), 1)
        first = _rank_exactly(points, distances, allowed, ids, width, sign)[..., :num]
    found[..., : first.shape[-1]] = first
    return found


def _largest_error(points: Tensor, distances: Tensor) -> float:
    """Most that a product distance, about the mean of `points`, is off by:
    the bound of searches in an index, for float64."""
    rows, dim = points.shape
    # No point is further from the mean than from the furthest point; the mean is rounded too.
    radius = float(distances.max().sqrt()) + gamma(rows, FLOAT64) * float(
        points.square().sum(-1).max().sqrt()
    )
    return float(squared_distance_error(dim, radius, radius, FLOAT64))


def _rank_exactly(
    points: Tensor, distances: Tensor, allowed: Tensor, ids: Tensor, width: int, sign: float
) -> Tensor:
    """The `width` smallest of `distances` [..., n, n] in each row, by direct differences:
    positions, −1 where not allowed.

    sign: −1 if distances are negated and the furthest comes first, otherwise 1.
    """
    candidates = distances.topk(width, dim=-1, largest=False).indices.sort(-1).values
    candidates = candidates.gather(-1, ids[candidates].argsort(dim=-1, stable=True))
    chunk = max(_NUMBERS_PER_CHUNK // (width * points.shape[1]), 1)
    parts = zip(
        points.expand(*allowed.shape[:-1], -1).reshape(-1, points.shape[1]).split(chunk),
        candidates.flatten(0, -2).split(chunk),
        strict=True,
    )
    exact = torch.cat([(part[:, None] - points[columns]).square().sum(-1) for part, columns in parts])
    exact = (sign * exact.view_as(candidates)).masked_fill(~allowed.gather(-1, candidates), float("inf"))
    # Stable over columns in id order: ties go to the smaller id.
    exact, order = exact.sort(dim=-1, stable=True)
    return candidates.gather(-1, order).masked_fill(exact.isinf(), -1)
