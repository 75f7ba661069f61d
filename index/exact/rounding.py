"""Bounds on the rounding error of a computed cost, shared by shards, batches and metrics.

A sum of n products computed in any order, with or without fused multiply-add, is off by at most γₙ·Σ|xᵢyᵢ| with
γₙ = n·u / (1 − n·u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). Here u is the unit
roundoff. By Cauchy and Schwarz Σ|xᵢyᵢ| ≤ ‖x‖·‖y‖. So a product is off by γ·‖x‖·‖y‖, and ‖x‖² + ‖y‖² − 2x·y by γ·(‖x‖
+ ‖y‖)².
"""

import numpy as np

FLOAT32 = 2.0**-24
"""unit roundoff of float32"""

FLOAT64 = 2.0**-53
"""unit roundoff of float64"""

# Roundings that are not in the sum of dim products: a mean taken off both vectors (3 of them), the two additions of
# an expanded square, and the float64 cost that decides.
_MORE_ROUNDINGS = 8
LARGEST_LENGTH = 2.0**62
"""vectors from this length on may have squared distances that leave float32's range, and nothing is promised of them"""

# Error of a product or sum that underflows, also if such numbers are flushed to 0.
_UNDERFLOW, _UNDERFLOW_OF_FLOAT64 = 2.0**-126, 2.0**-1022


def gamma(dim: int, unit: float) -> float:
    """γₙ for a cost over `dim` numbers, including all other roundings; inf if the bound does not apply."""
    lost = (dim + _MORE_ROUNDINGS) * unit
    return lost / (1 - lost) if lost < 0.5 else np.inf


def squared_distance_error(dim: int, a: np.ndarray | float, b: np.ndarray | float, unit: float) -> np.ndarray:
    """Most that a computed ‖x − y‖² of vectors of `dim` numbers and lengths ≤ `a` and ≤ `b` is off by: float64, inf
    for no promise.

    For direct differences and for ‖x‖² + ‖y‖² − 2x·y, also of vectors that some fixed vector was taken off before.
    """
    total = np.asarray(a + b)
    error = gamma(dim, unit) * np.square(total) + _underflow(dim, total, unit)
    return np.where(total < 2 * LARGEST_LENGTH, error, np.inf)


def product_error(dim: int, a: np.ndarray | float, b: np.ndarray | float, unit: float) -> np.ndarray:
    """Most that a computed x·y of vectors of `dim` numbers and lengths ≤ `a` and ≤ `b` is off by:
    float64, inf for no promise."""
    error = gamma(dim, unit) * a * b + _underflow(dim, a + b, unit)
    return np.where(np.maximum(a, b) < LARGEST_LENGTH, error, np.inf)


def _underflow(dim: int, lengths: np.ndarray | float, unit: float) -> np.ndarray:
    """Underflow error of all products, sums and inputs of a cost."""
    lost = _UNDERFLOW if unit > FLOAT64 else _UNDERFLOW_OF_FLOAT64
    return np.asarray(4 * (dim + _MORE_ROUNDINGS) * lost * (1 + lengths))
