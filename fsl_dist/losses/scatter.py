"""Deep clustering: the multivariate scatter loss in combination with the cross entropy of a prototypical episode.

Equation numbers are those of Bjerge, Bodesheim & Karstoft, "Deep Image Clustering with Model-Agnostic Meta-Learning".
Shapes: C classes, k support and q query images per class, D the size of the embedding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fsl_dist.losses.distances import at_least_float32, euclidean_rows, squared_distances

Distance = Literal["euclidean", "squared"]

_LEAST_SEPARATION = 1e-6
"""the scatter loss's denominator is at least this share of its numerator, so the loss at most its inverse"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScatterEpisode:
    """Loss of one episode and its terms; a term of weight 0 is None. Only `loss` has a gradient."""

    loss: Tensor
    """[]: scatter_weight · scatter + (1 − scatter_weight) · cross_entropy"""
    scatter: Tensor | None
    """[]: scatter inside the classes over scatter between their means"""
    is_clamped: Tensor | None
    """[]: 1 if the denominator of `scatter` was clamped to its minimum, otherwise 0"""
    cross_entropy: Tensor | None
    """[]: mean over the C·q query images of −log p(own class)"""
    accuracy: Tensor | None
    """[]: share of query images whose own class is nearest, 0 … 1"""


def scatter_loss(support: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_k Σ_n ‖x_kn − x̄_k‖² / Σ_{i<j} ‖x̄_i − x̄_j‖² (deep clustering Eq. 1).

    The denominator is C · Σ_k ‖x̄_k − x̄‖², the same sum without its pairs; it is raised to 1e-6 of the (detached)
    numerator plus 1e-12, and then passes no gradient. With one image in each class the loss is 0, and so is its
    gradient.

    Args:
        support: float [C, k, D], C ≥ 2, taken to float32 at least.

    Returns:
        The loss [], and whether the denominator was raised [], 0 or 1.
    """
    (support,) = at_least_float32(support)
    means = support.mean(dim=1)
    inside = (support - means.unsqueeze(1)).square().sum()
    between = len(means) * (means - means.mean(dim=0)).square().sum()
    least = _LEAST_SEPARATION * inside.detach() + 1e-12
    is_clamped = between.detach() < least
    return inside / torch.where(is_clamped, least, between), is_clamped.float()


def prototype_cross_entropy(
    support: Tensor, query: Tensor, distance: Distance = "euclidean"
) -> tuple[Tensor, Tensor]:
    """Mean over queries of −log softmax of −d to the class means (Eq. 2), and accuracy: [] and [] (0 … 1, no gradient).

    d is the Euclidean distance, or with distance="squared" its square, which gives the loss of prototypical networks.
    Euclidean distances are direct differences: C²·q·D numbers.

    Args:
        support: [C, k, D], converted to float32 at least.
        query: [C, q, D], converted to float32 at least.
        distance: between query and prototypes.
    """
    support, query = at_least_float32(support, query)
    means, queries = support.mean(dim=1), query.flatten(0, 1)
    if distance == "euclidean":
        distances = euclidean_rows(queries.unsqueeze(1), means)
    else:
        distances = squared_distances(queries, means)
    targets = torch.arange(len(query), device=query.device).repeat_interleave(query.shape[1])
    accuracy = (distances.detach().argmin(dim=-1) == targets).float().mean()
    return functional.cross_entropy(-distances, targets), accuracy


def scatter_episode_loss(
    support: Tensor, query: Tensor, *, scatter_weight: float, distance: Distance = "euclidean"
) -> ScatterEpisode:
    """scatter_weight · `scatter_loss` + (1 − scatter_weight) · `prototype_cross_entropy` of one episode (deep
    clustering Eq. 3).

    A term of weight 0 is not computed, because 0 times a non-finite value would be NaN. With weight 1 the query is
    not used.

    Args:
        support: float [C, k, D].
        query: float [C, q, D].
        scatter_weight: 0 … 1.
        distance: between query and prototypes.

    Returns:
        The loss and its terms.
    """
    scatter = is_clamped = cross_entropy = accuracy = None
    terms = []
    if scatter_weight > 0:
        scatter, is_clamped = scatter_loss(support)
        terms.append(scatter_weight * scatter)
        scatter = scatter.detach()
    if scatter_weight < 1:
        cross_entropy, accuracy = prototype_cross_entropy(support, query, distance)
        terms.append((1 - scatter_weight) * cross_entropy)
        cross_entropy = cross_entropy.detach()
    return ScatterEpisode(
        loss=torch.stack(terms).sum(),
        scatter=scatter,
        is_clamped=is_clamped,
        cross_entropy=cross_entropy,
        accuracy=accuracy,
    )
