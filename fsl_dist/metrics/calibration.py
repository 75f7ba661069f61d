"""Calibration: the difference between probabilities and the shares of correct predictions,
and the temperature that reduces it."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

_BINS = 15
_BETAS = (-7.0, 7.0)  # log of 1/temperature: 0.0009 to 1,097


def calibration_error(probabilities: NDArray[np.float64], is_right: NDArray[np.bool_]) -> float:
    """Expected calibration error: the mean of |accuracy − confidence| over 15 equal bins of confidence,
    weighed by their images.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", Eq. 3.

    Args:
        probabilities: float64 [n, C]; an image's confidence is its largest.
        is_right: bool [n]: whether the class of the largest is the true one.

    Returns:
        0 … 1; 0 without images.
    """
    if len(is_right) == 0:
        return 0.0
    confidences = probabilities.max(axis=1)
    # Bins (0, 1/15], (1/15, 2/15] … as in the paper.
    bins = np.clip(np.ceil(confidences * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=is_right - confidences, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(is_right))


def fit_temperature(scores: NDArray[np.float64], positions: NDArray[np.int64]) -> float:
    """Fit the temperature by maximum likelihood (Guo et al. 2017, section 4.2), with Platt's smoothed targets.

    The true class's target is (n + 1) / (n + 2) instead of 1, and the other classes share the rest (Platt 1999,
    section 2.2). Without smoothing, images that are all correct would lead to a temperature of 0 and a confidence of
    1. The loss is convex in 1 / temperature, so the minimum is unique. Deterministic.

    Args:
        scores: float64 [n, C]; −inf for an impossible class.
        positions: int64 [n], the true class's column. Images of an impossible class are ignored.

    Returns:
        The temperature; 1 if no image is left, or if fewer than two classes are possible.
    """
    from scipy.optimize import minimize_scalar

    is_possible = np.asarray(np.isfinite(scores).all(axis=0))
    kept = is_possible[positions] if len(positions) else np.zeros(0, dtype=np.bool_)
    num_classes = int(is_possible.sum())
    if not kept.any() or num_classes < 2:
        return 1.0
    own = scores[kept][np.arange(int(kept.sum())), positions[kept]]
    possible = scores[kept][:, is_possible]
    miss = 1 / (len(own) + 2)
    means = (possible.sum(axis=1) - own) / (num_classes - 1)
    targets = (1 - miss) * own + miss * means
    possible = possible - targets[:, None]

    def loss(log_beta: float) -> float:
        return float(np.mean(logsumexp(np.exp(log_beta) * possible, axis=1)))

    found = minimize_scalar(loss, bounds=_BETAS, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-found.x))
