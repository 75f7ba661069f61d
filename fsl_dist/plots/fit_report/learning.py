"""The expected gain from more images: the head is refitted on parts of the training images,
and a power law to its errors."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.heads.choosing import LOGISTIC_LIMIT
from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import Embedded, fit_head
from fsl_dist.metrics.few_shot import positions_among
from fsl_dist.metrics.learning_curve import FRACTIONS, Gain, draw_part, fit_power_law, resample_shares
from fsl_dist.plots.fit_report.inputs import GroupCurve, NextFacts
from fsl_dist.seeding import generator

_DRAWS = 3
_TIMES = 500
_GROUPS = ("fewest images", "middle", "most images")
# A third of the classes must have this many for a separate curve.
_LEAST_CLASSES = 2


def refitted(config: HeadConfig, train: Embedded) -> HeadConfig:
    """The head to fit on parts of the images.

    Softmax belongs to the network; it is replaced by logistic regression, or by class means if that would take long.
    """
    if config.kind != "softmax":
        return config
    if train.vectors.size * len(np.unique(train.labels)) > LOGISTIC_LIMIT:
        return HeadConfig(kind="prototypes")
    return HeadConfig(kind="logistic", c=0.1, is_balanced=config.tau > 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Classes whose training images are reduced together."""

    name: str
    labels: NDArray[np.int64]
    """int64 [g], ascending"""


def measure_learning(
    config: HeadConfig,
    train: Embedded,
    scored: Embedded,
    split: str,
    *,
    seconds: float = float("inf"),
    seed: int = 0,
) -> NextFacts | None:
    """Fit the head on quarters and halves of the training images of all classes,
    and of one third of the classes at a time.

    Args:
        config: the head; see `refitted` for the head that is fitted.
        train: training images.
        scored: images to score, of at least one training class.
        split: name of their split.
        seconds: time limit: first reduces the draws, then the thirds, then returns None.
        seed: of the draws.

    Returns:
        The curves; None if the time does not suffice for one draw, or if no image can be scored.
    """
    classes = np.unique(train.labels)
    scored = scored.rows(np.isin(scored.labels, classes))
    judged = np.unique(scored.labels)
    if not len(judged):
        return None
    head = refitted(config, train)
    answer = _Refits(head, train, scored, classes)
    started = time.monotonic()
    full = answer.of(np.arange(len(train.labels)))
    one_s = max(time.monotonic() - started, 1e-6)
    groups = [_Group("all classes", classes), *_thirds(train.labels, judged)]
    affordable = int(seconds / one_s) - 1
    per_group = len(FRACTIONS) - 1
    if affordable < per_group:
        return None
    if affordable < per_group * len(groups):
        groups = groups[:1]
    draws = min(_DRAWS, affordable // (per_group * len(groups)))
    curves = [_measure(answer, group, full, draws, seed) for group in groups]
    return NextFacts(
        curves=tuple(curves),
        head=head.name,
        draws=draws,
        num_scored=len(scored.labels),
        split=split,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Refits:
    """Fits the head on some of the training images."""

    config: HeadConfig
    train: Embedded
    scored: Embedded
    classes: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [n]: which of the scored images are right with the training images `rows` (int64)."""
        config, part = self.config, self.train.rows(rows)
        if config.kind in ("knn", "lmnn") and config.k_p > len(rows):
            config = dataclasses.replace(config, k_p=len(rows))
        fitted = fit_head(config, part, self.classes)
        found = fitted.probabilities(self.scored.vectors, self.scored.logits).argmax(axis=1)
        return self.classes[found] == self.scored.labels


def _thirds(labels: NDArray[np.int64], judged: NDArray[np.int64]) -> list[_Group]:
    """The scored classes in three parts by their training images; empty if they are equally large or too few."""
    counts = np.bincount(labels, minlength=int(judged.max()) + 1)[judged]
    if counts.min() == counts.max() or len(judged) < len(_GROUPS) * _LEAST_CLASSES:
        return []
    parts = np.array_split(judged[np.lexsort((judged, counts))], len(_GROUPS))
    return [_Group(name, np.sort(part)) for name, part in zip(_GROUPS, parts, strict=True)]


def _measure(answer: _Refits, group: _Group, full: NDArray[np.bool_], draws: int, seed: int) -> GroupCurve:
    """One curve: the group's images are reduced, those of other classes are not."""
    train, scored = answer.train, answer.scored
    inside = np.isin(train.labels, group.labels)
    own, others = np.flatnonzero(inside), np.flatnonzero(~inside)
    units = np.full(len(own), -1) if train.groups is None else train.groups[own]
    right, sizes = [], []
    for part, fraction in enumerate(FRACTIONS[:-1]):
        for draw in range(draws):
            rng = generator(seed, f"learning curve {group.name}", part, draw)
            kept = own[draw_part(train.labels[own], units, fraction, rng)]
            right.append(answer.of(np.sort(np.concatenate([kept, others]))))
        sizes.append(float(len(kept)))
    right += [full] * draws
    sizes.append(float(len(own)))
    judged = np.unique(scored.labels)
    is_own = np.isin(judged, group.labels)
    positions = positions_among(scored.labels, judged)
    weights = np.stack([_mean_over(is_own), _mean_over(~is_own)], axis=1)
    # Three rows of draws: quarters, halves, all images.
    shape = (len(FRACTIONS), draws)
    shares = _mean_shares(np.stack(right), positions, weights).reshape(*shape, 2).mean(axis=1)
    rng = generator(seed, f"learning curve bootstrap {group.name}")
    drawn = resample_shares(np.stack(right), positions, weights, _TIMES, rng).reshape(_TIMES, *shape, 2)
    picks = rng.integers(0, draws, size=(_TIMES, draws))
    drawn = np.take_along_axis(drawn, picks[:, None, :, None], axis=2).mean(axis=2)
    # An error of 0 has no logarithm: half an image is the least.
    least = 0.5 / max(int(np.isin(scored.labels, group.labels).sum()), 1)
    share = float(is_own.mean())
    curve = _curve_of(np.array(sizes), least, share)
    exponent, gain = curve(shares[None])
    exponents_drawn = curve(drawn)[1]
    recalls = _mean_shares(full[None], positions, np.eye(len(judged)))[0][is_own]
    low, high = np.quantile(1 - drawn[..., 0], [0.025, 0.975], axis=0)
    return GroupCurve(
        name=group.name,
        labels=tuple(judged[is_own][np.argsort(recalls, kind="stable")].tolist()),
        images=len(own),
        sizes=tuple(sizes),
        errors=tuple((1 - shares[:, 0]).tolist()),
        intervals=tuple(zip(low.tolist(), high.tolist(), strict=True)),
        exponent=float(exponent[0]),
        gain=Gain(float(gain[0]), *np.quantile(exponents_drawn, [0.05, 0.95]).tolist()),
    )


def _curve_of(
    sizes: NDArray[np.float64], least: float, share: float
) -> Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """shares float64 [B, 3, 2] (recall of the group and of the others) → (exponents, gains), float64 [B] each."""

    def extrapolate(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        errors = np.maximum(1 - shares[..., 0], least)
        _, exponents = fit_power_law(sizes, errors)
        # Twice the images: ε(2n) = ε(n) · 2^−b. The other classes lose as much again as they lost from half to all.
        own = errors[:, -1] * (1 - 2.0**-exponents)
        others = shares[:, -1, 1] - shares[:, -2, 1]
        return exponents, share * own + (1 - share) * others

    return extrapolate


def _mean_over(is_it: NDArray[np.bool_]) -> NDArray[np.float64]:
    """float64 [C]: weights of a mean over some classes; zeros if there are none."""
    return is_it / max(int(is_it.sum()), 1)


def _mean_shares(
    is_right: NDArray[np.bool_], positions: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """float64 [m, G]: weighted means of the classes' shares; is_right: bool [m, n], positions: int64 [n]."""
    counts = np.bincount(positions, minlength=len(weights))
    sums = np.stack([np.bincount(positions, weights=row, minlength=len(weights)) for row in is_right])
    return sums / counts @ weights
