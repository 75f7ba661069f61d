"""How far a computed cost may be from the true one: one bound for shards, batches and metrics.

A sum of n products computed in any order, with or without fused multiply-add, is off by at most γₙ·Σ|xᵢyᵢ| with
γₙ = n·u / (1 − n·u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1); u is the unit roundoff.
By Cauchy and Schwarz Σ|xᵢyᵢ| ≤ ‖x‖·‖y‖. So a product is off by γ·‖x‖·‖y‖, and ‖x‖² + ‖y‖² − 2x·y by γ·(‖x‖ + ‖y‖)².
"""

import numpy as np

FLOAT32 = 2.0**-24
"""unit roundoff of float32"""

FLOAT64 = 2.0**-53
"""unit roundoff of float64"""

# Roundings that are not in the sum of dim products: a mean taken off both vectors (3 of them), the two additions of an expanded
# square, and the float64 cost that decides.
_MORE_ROUNDINGS = 8
# Squares from here on leave float32's range, and nothing is promised.
_LARGEST_SUM = 2.0**63
# What a product or sum that leaves float32's range downwards is off by, also where such numbers are taken for 0.
_UNDERFLOW = 2.0**-126


def gamma(dim: int, unit: float) -> float:
    """γₙ for a cost over `dim` numbers with all its other roundings; inf where the bound does not apply."""
    lost = (dim + _MORE_ROUNDINGS) * unit
    return lost / (1 - lost) if lost < 0.5 else np.inf


def squared_distance_error(dim: int, a: np.ndarray, b: np.ndarray, unit: float) -> np.ndarray:
    """Most that a computed ‖x − y‖² of vectors of `dim` numbers and lengths ≤ `a` and ≤ `b` is off by: float64, inf for no promise.

    For direct differences and for ‖x‖² + ‖y‖² − 2x·y, also of vectors that some fixed vector was taken off before.
    """
    total = a + b
    error = gamma(dim, unit) * np.square(total) + _underflow(dim, total)
    return np.where(total < _LARGEST_SUM, error, np.inf)


def product_error(dim: int, a: np.ndarray, b: np.ndarray | float, unit: float) -> np.ndarray:
    """Most that a computed x·y of vectors of `dim` numbers and lengths ≤ `a` and ≤ `b` is off by: float64, inf for no promise."""
    error = gamma(dim, unit) * a * b + _underflow(dim, a + b)
    return np.where(np.maximum(a, b) < _LARGEST_SUM, error, np.inf)


def _underflow(dim: int, lengths: np.ndarray) -> np.ndarray:
    """Of each product, each sum, and each number that goes in."""
    return 4 * (dim + _MORE_ROUNDINGS) * _UNDERFLOW * (1 + lengths)
