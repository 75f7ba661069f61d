"""Learning curves: the fit of the law, the parts that are drawn, and intervals, against known values."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fsl_dist.metrics.learning_curve import draw_part, fit_power_law, resample_shares, wilson_interval


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.5), (2.0, 0.0), (0.1, -0.3)])
def test_the_law_is_found_again(a: float, b: float) -> None:
    sizes = np.array([25.0, 50.0, 100.0, 400.0])
    factor, exponent = fit_power_law(sizes, a * sizes**-b)
    assert factor == pytest.approx(a)
    assert exponent == pytest.approx(b)


def test_the_fit_is_the_least_squares_line_of_the_logarithms() -> None:
    rng = np.random.default_rng(0)
    sizes, errors = np.array([10.0, 20.0, 40.0]), rng.uniform(0.05, 0.5, (7, 3))
    factors, exponents = fit_power_law(sizes, errors)
    for row, factor, exponent in zip(errors, factors, exponents, strict=True):
        slope, level = np.polyfit(np.log(sizes), np.log(row), 1)
        assert exponent == pytest.approx(-slope)
        assert factor == pytest.approx(np.exp(level))


def test_a_part_has_its_share_of_every_class() -> None:
    labels = np.repeat([3, 5, 9], [8, 5, 1])
    part = draw_part(labels, np.full(14, -1), 0.5, np.random.default_rng(0))
    assert np.bincount(labels[part], minlength=10)[[3, 5, 9]].tolist() == [4, 3, 1]
    assert (np.diff(part) > 0).all()
    again = draw_part(labels, np.full(14, -1), 0.5, np.random.default_rng(0))
    assert part.tolist() == again.tolist()
    others = [
        draw_part(labels, np.full(14, -1), 0.5, np.random.default_rng(seed)).tolist() for seed in range(9)
    ]
    assert len({tuple(other) for other in others}) > 1


def test_a_part_takes_units_one_after_another() -> None:
    labels, units = np.zeros(40, dtype=np.int64), np.repeat(np.arange(10), 4)
    for seed in range(5):
        part = draw_part(labels, units, 0.25, np.random.default_rng(seed))
        assert len(part) == 10
        assert len(np.unique(units[part])) == 3, "two whole units and half of a third"


def test_a_bootstrap_draws_around_the_observed_means() -> None:
    rng = np.random.default_rng(1)
    classes = np.repeat(np.arange(4), [5, 10, 20, 3])
    is_right = rng.random((2, len(classes))) < np.array([[0.7], [0.9]])
    weights = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]])
    drawn = resample_shares(is_right, classes, weights, 2000, np.random.default_rng(2))
    shares = np.stack([[row[classes == label].mean() for label in range(4)] for row in is_right])
    np.testing.assert_allclose(drawn.mean(axis=0), shares @ weights, atol=0.01)
    # The variance of a mean over two classes, each drawn with replacement.
    wanted = [(shares[0, c] * (1 - shares[0, c])) / size for c, size in enumerate([5, 10, 20, 3])]
    assert drawn[:, 0, 0].var() == pytest.approx((wanted[0] + wanted[1]) / 4, rel=0.15)


def test_classifiers_are_scored_on_the_same_draws() -> None:
    is_right = np.array([[True, False, True, True]] * 2)
    drawn = resample_shares(is_right, np.array([0, 0, 1, 1]), np.eye(2), 50, np.random.default_rng(0))
    assert (drawn[:, 0] == drawn[:, 1]).all()


@pytest.mark.parametrize(("right", "number"), [(0, 1), (1, 1), (3, 10), (10, 10), (57, 90)])
def test_wilsons_interval(right: int, number: int) -> None:
    low, high = wilson_interval(np.array([right]), np.array([number]), z=1.959963984540054)
    wanted = binomtest(right, number).proportion_ci(method="wilson")
    assert low[0] == pytest.approx(wanted.low, abs=1e-9)
    assert high[0] == pytest.approx(wanted.high, abs=1e-9)
