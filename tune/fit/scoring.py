"""Candidates scored on validation parts, compared by a paired bootstrap, and the choice among them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

from fsl_dist.heads import Embedded, HeadConfig, HeadScore, candidate_heads
from fsl_dist.heads.choosing import score_heads
from fsl_dist.heads.scoring import score_probabilities
from fsl_dist.metrics.bootstrap import resample
from tune.fit.config import Metric
from tune.fit.records import ScoreRecord

TIE_SE = 0.5
"""standard errors of the difference to the best one below which a cheaper candidate is taken"""
FROZEN_SE = 1.0
"""standard errors by which the frozen network must be better than the best trained one to be taken. Trained networks of
a round have seen a part of the images of the final one, and few validation images say little."""
_Z95 = 1.96

SIMPLE_HEAD = HeadConfig(kind="knn", metric="cosine", k_p=5)
"""the head that the frozen network is always shown with"""


@dataclass(frozen=True, slots=True)
class Scored:
    """A head on one or several trained networks of a recipe, scored on their validation parts together."""

    recipe: str
    """name of the recipe, or of the frozen network"""
    head: HeadConfig
    """calibrated"""
    score: HeadScore
    """on the images of all parts"""
    of_parts: tuple[HeadScore, ...]
    """on each part"""
    cost: tuple[int, int]
    """rank of the recipe by its cost of training and use, and of the head within the recipe; smaller is cheaper"""

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.recipe} · {self.head.name}"

    @property
    def is_frozen(self) -> bool:
        """Whether its network is the frozen one."""
        return self.cost[0] == 0

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of images of each part: candidates with the same parts can be compared."""
        return tuple(part.n for part in self.of_parts)

    def value(self, metric: Metric) -> float:
        """What candidates are compared by."""
        return value_of(self.score, metric)


def value_of(score: HeadScore, metric: Metric) -> float:
    """The score that a metric names."""
    if metric == "balanced":
        return (score.acc + score.mcr) / 2
    return score.acc if metric == "acc" else score.mcr


def score_networks(
    recipe: str,
    networks: Sequence[tuple[Embedded, Embedded]],
    classes: NDArray[np.int64],
    *,
    cost: int,
    is_trained: bool = True,
) -> list[Scored]:
    """Score every applicable head on the parts of all networks of one recipe.

    A head's temperatures are geometric means over the parts. LMNN, whose fit takes as long as all other heads
    together, is only used with the frozen network, since a trained network already separates the classes.

    Args:
        recipe: name.
        networks: (images that heads are fitted to, validation images), embedded by each network.
        classes: int64 [C], ascending.
        cost: of the recipe.
        is_trained: whether the networks were trained on the classes.
    """
    configs = [
        config for config in candidate_heads(networks[0][0]) if config.kind != "lmnn" or not is_trained
    ]
    found = [score_heads(configs, train, part, classes) for train, part in networks]
    by_head = [{plain(one.config): one for one in candidates} for candidates in found]
    scored = []
    for place, config in enumerate(configs):
        key = plain(config)
        if not all(key in candidates for candidates in by_head):
            continue
        ones = [candidates[key] for candidates in by_head]
        calibrated = replace(
            key,
            temperature=_mean([one.config.temperature for one in ones]),
            novel_temperature=_mean([one.config.novel_temperature for one in ones]),
        )
        scores = tuple(one.score for one in ones)
        score = scores[0] if len(scores) == 1 else _join(scores, [part for _, part in networks], classes)
        scored.append(Scored(recipe, calibrated, score, scores, (cost, place)))
    return scored


def plain(config: HeadConfig) -> HeadConfig:
    """A head without its calibration."""
    return replace(config, temperature=1.0, novel_temperature=1.0)


def _mean(temperatures: Sequence[float]) -> float:
    """Their geometric mean."""
    return float(np.exp(np.mean(np.log(temperatures))))


def _join(scores: Sequence[HeadScore], parts: Sequence[Embedded], classes: NDArray[np.int64]) -> HeadScore:
    """The score of all parts' images together; an image in two parts counts twice,
    and both copies are kept together."""
    ids = np.concatenate([part.ids for part in parts])
    groups = [part.groups for part in parts]
    together = Embedded(
        ids=ids,
        vectors=np.zeros((len(ids), 0), dtype=np.float32),
        labels=np.concatenate([part.labels for part in parts]),
        groups=_groups_of(ids, [group for group in groups if group is not None]),
    )
    return score_probabilities(np.concatenate([score.probabilities for score in scores]), classes, together)


def _groups_of(ids: NDArray[np.int64], groups: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Groups in which an image that comes twice is one with itself."""
    if not groups:
        return ids
    joined = np.concatenate(groups)
    return np.where(joined < 0, joined.max(initial=-1) + 1 + ids, joined)


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two candidates on the same images."""

    value: float
    standard_error: float

    @property
    def is_more_than_noise(self) -> bool:
        """Whether a 95 % interval leaves 0 out."""
        return abs(self.value) > _Z95 * self.standard_error


def difference(first: Scored, second: Scored, metric: Metric) -> Difference:
    """The difference of two candidates that were scored on the same images,
    and its standard error by a paired bootstrap."""
    values = first.score.is_right.astype(np.int64) - second.score.is_right.astype(np.int64)
    acc, mcr = resample(values, first.score.labels, first.score.groups, seed=0)
    draws = {"acc": acc, "mcr": mcr, "balanced": (acc + mcr) / 2}[metric]
    return Difference(first.value(metric) - second.value(metric), float(np.std(draws)))


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice among candidates that were scored on the same images."""

    chosen: Scored
    best: Scored
    """of the highest value"""
    equal: tuple[Scored, ...]
    """those whose difference to the best is within noise, the best left out"""


def choose(candidates: Sequence[Scored], metric: Metric) -> Choice:
    """The candidate of the highest value, or a cheaper one that is less than half a standard error below it.

    The frozen network is taken only if it is more than one standard error better than the best trained network; it does
    not count as cheaper.
    """
    best = _highest(candidates, metric)
    leading, trained = best, [one for one in candidates if not one.is_frozen]
    if best.is_frozen and trained:
        best_trained = _highest(trained, metric)
        if not exceeds(best, best_trained, metric, FROZEN_SE):
            leading = best_trained
    near = [
        one
        for one in candidates
        if one.is_frozen == leading.is_frozen and not exceeds(leading, one, metric, TIE_SE)
    ]
    equal = tuple(
        one for one in candidates if one is not best and not difference(best, one, metric).is_more_than_noise
    )
    return Choice(min(near, key=lambda one: one.cost), best, equal)


def exceeds(first: Scored, second: Scored, metric: Metric, standard_errors: float) -> bool:
    """Whether `first` is better by more than so many standard errors of the difference."""
    if first is second:
        return False
    found = difference(first, second, metric)
    return found.value > standard_errors * found.standard_error


def _highest(candidates: Sequence[Scored], metric: Metric) -> Scored:
    return max(candidates, key=lambda one: (one.value(metric), [-part for part in one.cost]))


def to_record(score: HeadScore, parts: Sequence[HeadScore] = ()) -> ScoreRecord:
    """A score as fit.json has it."""
    several = len(parts) > 1
    return ScoreRecord(
        n=score.n,
        parts=max(1, len(parts)),
        acc=score.acc,
        mcr=score.mcr,
        acc_interval=_pair(score.acc_interval),
        mcr_interval=_pair(score.mcr_interval),
        acc_std=stdev(part.acc for part in parts) if several else None,
        mcr_std=stdev(part.mcr for part in parts) if several else None,
        ece=score.ece,
    )


def _pair(interval: Sequence[float]) -> tuple[float, float]:
    low, high = interval
    return float(low), float(high)


def recipes_of(scored: Sequence[Scored]) -> list[str]:
    """Names of the recipes of some candidates, in their order."""
    return list(dict.fromkeys(one.recipe for one in scored))


def of_recipe(scored: Sequence[Scored], recipe: str) -> list[Scored]:
    """The candidates of a recipe."""
    return [one for one in scored if one.recipe == recipe]


def top_heads(scored: Sequence[Scored], metric: Metric, number: int) -> list[Scored]:
    """The best `number` of some candidates; of equal ones the cheaper."""
    return sorted(scored, key=lambda one: (-one.value(metric), one.cost))[:number]
