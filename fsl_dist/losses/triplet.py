"""CHAI's triplet loss: two similar images should be closer to each other than both are to a third.

Equation numbers are those of Codella et al., "Collaborative Human-AI (CHAI)".
"""

import torch
from torch import Tensor

from fsl_dist.losses.distances import at_least_float32


def triplet_gaps(embeddings: Tensor, triplets: Tensor) -> Tensor:
    """D(a,b) − ½(D(a,c) + D(b,c)) of each triplet, D the squared Euclidean distance: float32 or wider [T].

    Below 0, a and b are closer to each other than to c on average. Computed from direct differences, exact for
    near-duplicates.

    Args:
        embeddings: [n, D].
        triplets: int64 [T, 3], positions (a, b, c) in the embeddings; a and b are similar, c is not.
    """
    (embeddings,) = at_least_float32(embeddings)
    a, b, c = (embeddings[column] for column in triplets.unbind(1))
    return (a - b).square().sum(1) - 0.5 * ((a - c).square().sum(1) + (b - c).square().sum(1))


def triplet_loss(embeddings: Tensor, triplets: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Mean over triplets of max(0, margin + D(a,b) − ½(D(a,c) + D(b,c))) (CHAI Eq. 1).

    Satisfied triplets count as zeros. The gradient flows through all three images; a and b may change places.

    Args:
        embeddings: float [n, D].
        triplets: int64 [T, 3], T ≥ 1: positions of a, b and c.
        margin: of the hinge, 0 or more.

    Returns:
        The loss [], and, without gradient, the share of triplets that are above zero [], 0 … 1.
    """
    hinge = (triplet_gaps(embeddings, triplets) + margin).relu()
    return hinge.mean(), (hinge.detach() > 0).to(hinge.dtype).mean()


@torch.no_grad()
def score_triplets(
    embeddings: Tensor, triplets: Tensor, margin: float, *, at_a_time: int = 4096
) -> tuple[float, float]:
    """`triplet_loss` of many triplets, and the share of triplets whose a and b are closer to each other than to c.

    embeddings: [n, D]; triplets: int64 [T, 3], T ≥ 1. `at_a_time` triplets are in memory. Sums are in float64.
    """
    loss, right = 0.0, 0
    for part in triplets.split(at_a_time):
        gaps = triplet_gaps(embeddings, part)
        loss += float((gaps + margin).relu().double().sum())
        right += int((gaps < 0).sum())
    return loss / len(triplets), right / len(triplets)
