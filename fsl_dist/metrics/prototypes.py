"""Prototypes of classes by k-means, and the few-shot protocol that scores them (PCN, section 4)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.errors import RequestError
from fsl_dist.methods.prototypes import _DISTANCES_AT_A_TIME, Prototypes, fit_prototypes, stack_prototypes
from fsl_dist.metrics.class_scores import Floats, Repeated, rank_targets
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.metrics.few_shot import (
    check_novel,
    draw_scores,
    draws_of,
    group_scores,
    over_draws,
    positions_among,
    warn_of_untrained,
)

# Number of scores of base images for the novel classes of all draws per block: 128 MB.
_SCORES_AT_A_TIME = 2**24


def prototype_scores(embeddings: Floats, prototypes: Prototypes, temperature: float) -> NDArray[np.float64]:
    """Class scores s_k = −Σ_z q(z|k,x)·‖x − μ_zk‖² (PCN Eq. 1, 3): float64 [n, C], larger is likelier.

    `embeddings`: [n, D]. `temperature` (above 0) divides the squared distances inside the responsibilities q.
    """
    return _scores_at(embeddings, prototypes, [temperature])[0]


def _scores_at(
    embeddings: Floats, prototypes: Prototypes, temperatures: Sequence[float]
) -> NDArray[np.float64]:
    """`prototype_scores` at several temperatures from the same distances: float64 [T, n, C]."""
    scores = torch.empty((len(temperatures), len(embeddings), len(prototypes.labels)), dtype=torch.float64)
    # Far from the origin a product of raw vectors cancels; the prototypes' mean is a fixed point near all of them.
    used = prototypes.means[prototypes.mask].astype(np.float64)
    centre = used.mean(axis=0)
    means = torch.from_numpy(prototypes.means.astype(np.float64) - centre)
    lengths = means.square().sum(dim=2)
    columns = means.flatten(0, 1).T
    is_padding = ~torch.from_numpy(prototypes.mask)
    has_padding = bool(is_padding.any())
    rows = max(1, _DISTANCES_AT_A_TIME // max(1, prototypes.mask.size))
    for start in range(0, len(embeddings), rows):
        chunk = slice(start, start + rows)
        points = torch.from_numpy(embeddings[chunk].astype(np.float64) - centre)
        # float64 [rows, C, M], in place from here on
        distances = (points @ columns).view(-1, *is_padding.shape).mul_(-2.0)
        distances.add_(lengths).add_(points.square().sum(dim=1)[:, None, None]).clamp_(min=0.0)
        logits = -distances
        if has_padding:
            logits.masked_fill_(is_padding, -torch.inf)
        logits -= logits.amax(dim=2, keepdim=True)
        for scores_at, temperature in zip(scores, temperatures, strict=True):
            weights = (logits / temperature).exp_()
            totals = weights.sum(dim=2)
            scores_at[chunk] = weights.mul_(distances).sum(dim=2).div_(totals).neg_()
    return scores.numpy()


def evaluate_prototypes(
    train_embeddings: Floats,
    train_labels: NDArray[np.int64],
    test_embeddings: Floats,
    test_labels: NDArray[np.int64],
    novel_embeddings: Floats | None,
    novel_labels: NDArray[np.int64] | None,
    *,
    base_clusters: int,
    novel_clusters: int,
    temperature: float,
    config: EvaluationConfig,
    seed: int,
    class_names: Sequence[str] = (),
    fitted: dict[tuple[int, int], Prototypes] | None = None,
) -> dict[str, float | Repeated]:
    """Score the base classes' test images, and novel classes learned from a few images, in one label space.

    Embeddings are [n, D] with int64 [n] labels; `novel_*` contain all images of the novel classes, or None. Base
    prototypes are computed from all training images by k-means. Each of `config.draws` draws selects `novel_test`
    test images and `novel_shots` support images of each novel class; the test images are the same for any number of
    shots. Cluster numbers are the method's unless `config` sets others; `temperature` is the training one, to which
    each `delta_tau` is added. `class_names[label]` is the name in errors. `fitted`: base prototypes of these training
    images and this seed by (clusters, k-means starts), shared between calls; missing ones are added. Distances to
    base prototypes are computed once for all draws and Δτ.

    Returns:
        Fractions named `mca/GROUP`, `recall@5/GROUP`, `recall@10/GROUP`, `balanced_recall@5/GROUP` and
        `balanced_recall@10/GROUP`, with the suffix `;dtau=D` for a Δτ other than 0. With novel classes GROUP is
        `base_novel`, `base` and `novel` and a value is `Repeated` over the draws; without, it is `base` and a number.
        A test image of a class without training images counts as wrong, with a warning that names the class.

    Raises:
        RequestError: τ + Δτ is not above 0, a novel class has too few images or is a base class too, or there is
            nothing to test.
    """
    temperatures = [_test_temperature(temperature, delta) for delta in config.delta_tau]
    if len(train_labels) == 0:
        raise RequestError(
            "there are no training images to take base prototypes from (evaluate needs split train)"
        )
    if len(test_labels) == 0 and novel_labels is None:
        raise RequestError(
            "there is nothing to test: no base test images and no novel class (pack with a test split)"
        )
    fitted = {} if fitted is None else fitted
    clusters, starts = config.base_clusters or base_clusters, config.kmeans_runs
    if (clusters, starts) not in fitted:
        fitted[clusters, starts] = fit_prototypes(
            train_embeddings, train_labels, clusters, seed=seed, epoch=0, starts=starts
        )
    base = fitted[clusters, starts]
    warn_of_untrained(test_labels, base.labels, class_names)
    base_targets = positions_among(test_labels, base.labels)
    suffixes = [f";dtau={delta:.12g}" if delta else "" for delta in config.delta_tau]
    if novel_embeddings is None or novel_labels is None:
        scores: dict[str, float | Repeated] = {}
        base_scores = _scores_at(test_embeddings, base, temperatures)
        for suffix, scores_at in zip(suffixes, base_scores, strict=True):
            scores |= group_scores("base", rank_targets(scores_at, base_targets), test_labels, suffix)
        return scores

    check_novel(novel_labels, base.labels, config, class_names)
    draws = list(draws_of(novel_labels, config, seed=seed))
    novels = [
        fit_prototypes(
            novel_embeddings[draw.support],
            novel_labels[draw.support],
            config.novel_clusters or novel_clusters,
            seed=seed,
            epoch=draw.number,
            starts=config.kmeans_runs,
        )
        for draw in draws
    ]
    tests = [draw.test for draw in draws]
    ranks = rank_draws(
        test_embeddings, base_targets, novel_embeddings, novel_labels, tests, base, novels, temperatures
    )
    of_draws: list[dict[str, float]] = []
    for test, of_draw in zip(tests, ranks, strict=True):
        labels = np.concatenate([test_labels, novel_labels[test]])
        found: dict[str, float] = {}
        for ranks_at, suffix in zip(of_draw, suffixes, strict=True):
            found |= draw_scores(ranks_at, labels, len(test_labels), suffix)
        of_draws.append(found)
    return over_draws(of_draws)


def rank_draws(
    test_embeddings: Floats,
    base_targets: NDArray[np.int64],
    novel_embeddings: Floats,
    novel_labels: NDArray[np.int64],
    tests: Sequence[NDArray[np.int64]],
    base: Prototypes,
    novels: Sequence[Prototypes],
    temperatures: Sequence[float],
) -> NDArray[np.int64]:
    """Number of base and novel classes that rank before the true one, in each draw: int64 [draws, T, n + m].

    `test_embeddings`: [n, D], base test images with `base_targets` (int64 [n], positions in `base`, or −1); `tests[d]`:
    int64 [m], the rows of `novel_embeddings` that are tested in draw d after them. `novels[d]`: prototypes of the
    same novel classes in each draw. T temperatures. Ties: base before novel, then the smaller position.
    """
    num, num_novel = len(test_embeddings), len(novels[0].labels)
    ranks = np.empty((len(tests), len(temperatures), num + len(tests[0])), dtype=np.int64)
    # All draws in one product. The base classes that rank before a base image are the same in every draw.
    every = stack_prototypes(
        [m[used] for novel in novels for m, used in zip(novel.means, novel.mask, strict=True)],
        np.concatenate([novel.labels for novel in novels]),
    )
    rows = max(1, _SCORES_AT_A_TIME // (len(temperatures) * max(len(every.labels), len(base.labels))))
    for start in range(0, num, rows):
        chunk = slice(start, min(start + rows, num))
        targets = base_targets[chunk]
        to_base = _scores_at(test_embeddings[chunk], base, temperatures)
        to_novel = _scores_at(test_embeddings[chunk], every, temperatures)
        for which, scores_at in enumerate(to_base):
            own = np.take_along_axis(scores_at, np.maximum(targets, 0)[:, None], axis=1)
            of_novel = (to_novel[which] > own).reshape(len(targets), len(tests), num_novel).sum(axis=2)
            before = rank_targets(scores_at, targets) + np.where(targets >= 0, of_novel.T, 0)
            ranks[:, which, chunk] = before
    tested, rows_of_draw = np.unique(tests, return_inverse=True)
    novel_to_base = _scores_at(novel_embeddings[tested], base, temperatures)
    for test, of_test, novel, of_draw in zip(tests, rows_of_draw, novels, ranks, strict=True):
        targets = positions_among(novel_labels[test], novel.labels)
        scores = _scores_at(novel_embeddings[test], novel, temperatures)
        for which, scores_at in enumerate(scores):
            own_at = scores_at[np.arange(len(test)), targets][:, None]
            before = (novel_to_base[which, of_test] >= own_at).sum(axis=1)
            of_draw[which, num:] = rank_targets(scores_at, targets) + before
    return ranks


def _test_temperature(temperature: float, delta: float) -> float:
    if temperature + delta <= 0:
        raise RequestError(
            f"evaluation.delta_tau={delta:g} with method.temperature={temperature:g} gives a test temperature of "
            f"{temperature + delta:g}; it must be above 0 (leave this value out of evaluation.delta_tau)"
        )
    return temperature + delta
