"""Choose a head: the heads that suit the data, and the best of them on validation images."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import RequestError
from fsl_dist.heads.calibrating import temperature_of
from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import Embedded, Head, Neighbours, fit_head, to_probabilities, vote_scores
from fsl_dist.heads.joining import calibrate_novel
from fsl_dist.heads.scoring import HeadScore, Metric, compare, score_probabilities
from fsl_dist.metrics.few_shot_knn import Nearest
from fsl_dist.notebook import html_table
from index.base.settings import dump

log = logging.getLogger(__name__)

K_PS = (1, 5, 10, 20)
TAUS = (0.0, 0.5, 1.0)
CS = (0.001, 0.01, 0.1, 1.0)

# Limits of n · dim · classes for a logistic regression, and of training images for LMNN: a few seconds on one core.
LOGISTIC_LIMIT = 5 * 10**8
LMNN_LIMIT = 1000

# Embeddings that are normalised have equal lengths up to float32's rounding; then both metrics have the same
# neighbours.
_SAME_LENGTH = 1e-5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head and its scores on validation images."""

    config: HeadConfig
    """with the calibrated temperature"""
    score: HeadScore
    """at that temperature"""
    ece_before: float
    """expected calibration error at temperature 1"""
    seconds: float
    """for the fit and the scores; heads that share a search share its time"""


@dataclass(frozen=True, slots=True)
class Choice:
    """All heads that were scored, and the best."""

    candidates: list[Candidate]
    """in the order of `candidate_heads`"""
    best: int
    """position of the best one"""
    equal: list[int]
    """positions of those whose difference to the best one is within noise, without itself"""

    @property
    def config(self) -> HeadConfig:
        """Of the best head."""
        return self.candidates[self.best].config

    def _repr_html_(self) -> str:
        rows = [
            [
                one.config.name,
                f"{one.score.acc:.4f}",
                f"{one.score.mcr:.4f}",
                f"{one.score.mcr_interval[0]:.4f} to {one.score.mcr_interval[1]:.4f}",
                f"{one.score.ece:.4f}",
                "best" if place == self.best else "equal" if place in self.equal else "",
            ]
            for place, one in enumerate(self.candidates)
        ]
        return html_table(["head", "acc", "mcr", "95 % of mcr", "ece", ""], rows)

    def to_json(self) -> dict:
        """The choice as plain values, without predictions."""
        return {
            "head": dump(self.config),
            "n": self.candidates[self.best].score.n,
            "candidates": [
                {
                    "name": one.config.name,
                    "head": dump(one.config),
                    "acc": one.score.acc,
                    "mcr": one.score.mcr,
                    "acc_interval": list(one.score.acc_interval),
                    "mcr_interval": list(one.score.mcr_interval),
                    "ece": one.score.ece,
                    "ece_before": one.ece_before,
                    "seconds": one.seconds,
                    "is_best": place == self.best,
                    "is_equal": place in self.equal,
                }
                for place, one in enumerate(self.candidates)
            ],
        }


def candidate_heads(train: Embedded) -> list[HeadConfig]:
    """Return the heads that suit the training images, cheapest first.

    - softmax if there are logits, with τ above 0 if class sizes differ;
    - prototypes, plain and centred;
    - kNN by l2, and by cosine if embeddings differ in length and none is zero, with K_p of 1, 5, 10 and 20 up to the
      size of the largest class: above it no class could win all votes;
    - logistic regression if n · dim · C is at most 5 · 10⁸, which one core fits in seconds; balanced if class sizes
      differ;
    - LMNN for at most 1,000 training images, since its cost grows with their square, if some class has two.
    """
    labels, counts = np.unique(train.labels, return_counts=True)
    num, dim = train.vectors.shape
    is_even = bool((counts == counts[0]).all())
    ks = [k for k in K_PS if k <= counts.max(initial=0)]
    heads = []
    if train.logits is not None:
        heads += [HeadConfig(kind="softmax", tau=tau) for tau in (TAUS[:1] if is_even else TAUS)]
    heads += [HeadConfig(kind="prototypes", is_centred=is_centred) for is_centred in (False, True)]
    lengths = np.linalg.norm(train.vectors, axis=1)
    if len(lengths) and 0 < lengths.min() < lengths.max() * (1 - _SAME_LENGTH):
        heads += [HeadConfig(kind="knn", metric="cosine", k_p=k) for k in ks]
    heads += [HeadConfig(kind="knn", metric="l2", k_p=k) for k in ks]
    if len(labels) > 1 and num * dim * len(labels) <= LOGISTIC_LIMIT:
        balances = (False,) if is_even else (False, True)
        heads += [HeadConfig(kind="logistic", c=c, is_balanced=balanced) for balanced in balances for c in CS]
    if len(labels) > 1 and num <= LMNN_LIMIT and counts.max() > 1:
        heads += [HeadConfig(kind="lmnn", k_p=k) for k in ks if k <= 5]
    return heads


def score_heads(
    configs: Sequence[HeadConfig],
    train: Embedded,
    part: Embedded,
    classes: NDArray[np.int64],
    *,
    seed: int = 0,
) -> list[Candidate]:
    """Fit heads to `train`, calibrate and score them on `part`; kNN heads with the same metric share a search.

    Args:
        configs: heads; their two temperatures are replaced.
        train: training images, without those of `part`.
        part: validation images, at least one.
        classes: int64 [C], ascending, all labels of `train`.
        seed: of the bootstrap draws for the intervals.

    Returns:
        One candidate per applicable head; the others are logged with the reason.
    """
    searches: dict[tuple[str, str, int], tuple[Neighbours, Nearest]] = {}
    found: list[Candidate] = []
    if not configs:
        return found
    joined = calibrate_novel(configs[0], train, part, classes)
    for config in configs:
        started = time.perf_counter()
        try:
            if config.kind in ("knn", "lmnn"):
                key = (config.kind, config.metric, config.pca)
                if key not in searches:
                    most = max(other.k_p for other in configs if (other.kind, other.metric, other.pca) == key)
                    fitted = Neighbours.fit(config, train, classes)
                    searches[key] = fitted, fitted.nearest(part.vectors, most)
                fitted, nearest = searches[key]
                head = Head(config, classes, dataclasses.replace(fitted, k_p=config.k_p))
                scores = vote_scores(nearest, config.k_p, classes)
            else:
                head = fit_head(config, train, classes)
                scores = head.scores(part.vectors, part.logits)
        except RequestError as error:
            log.info("the head %s is left out: %s", config.name, error)
            continue
        before = score_probabilities(to_probabilities(scores, 1.0), classes, part, seed=seed)
        temperature = temperature_of(head, scores, part)
        score = score_probabilities(to_probabilities(scores, temperature), classes, part, seed=seed)
        calibrated = dataclasses.replace(
            config, temperature=temperature, novel_temperature=joined.novel_temperature
        )
        found.append(Candidate(calibrated, score, before.ece, time.perf_counter() - started))
    return found


def choose(candidates: Sequence[Candidate], metric: Metric = "mcr", *, seed: int = 0) -> Choice:
    """Return the best of heads that were scored on the same images: by `metric`, then the other score, then the cost.

    Raises RequestError if there is none.
    """
    if not candidates:
        raise RequestError("no head can be scored: the training images suit none of them")
    other: Metric = "acc" if metric == "mcr" else "mcr"
    values = [(one.score.value(metric), one.score.value(other)) for one in candidates]
    best = values.index(max(values))
    equal = [
        place
        for place, one in enumerate(candidates)
        if place != best
        and not compare(candidates[best].score, one.score, metric, seed=seed).is_more_than_noise
    ]
    return Choice(list(candidates), best, equal)
