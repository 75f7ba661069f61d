"""Scores of heads, their intervals, calibration and choice."""

import math
import time

import numpy as np
import pytest

from fsl_dist.errors import DataError, RequestError
from fsl_dist.heads import (
    Embedded,
    HeadConfig,
    calibrate,
    candidate_heads,
    choose,
    compare,
    fit_head,
    score_head,
    score_heads,
)
from fsl_dist.metrics.bootstrap import interval_of, resample
from fsl_dist.metrics.calibration import calibration_error, fit_temperature


def test_the_calibration_error_is_its_definition():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(4, 0.5), 200)
    probabilities[0] = [0.2, 0.2, 0.2, 0.4]  # 6/15: the upper end of a bin belongs to it
    is_right = rng.random(200) < 0.6
    expected = 0.0
    for number in range(15):
        inside = [i for i in range(200) if number / 15 < max(probabilities[i]) <= (number + 1) / 15]
        if inside:
            accuracy = sum(is_right[i] for i in inside) / len(inside)
            confidence = sum(max(probabilities[i]) for i in inside) / len(inside)
            expected += len(inside) / 200 * abs(accuracy - confidence)
    assert calibration_error(probabilities, is_right) == pytest.approx(expected, abs=1e-12)


def test_the_temperature_is_the_best_of_a_grid_and_undoes_a_scale():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(4000, 5)) * 2
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    positions = (rng.random((4000, 1)) > weights.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(scores * 3, positions) == pytest.approx(3.0, rel=0.05)
    found = fit_temperature(scores[:50], positions[:50])

    def smoothed(temperature):
        miss, total = 1 / 52, 0.0
        for row, true in zip(scores[:50], positions[:50].tolist(), strict=True):
            normaliser = math.log(sum(math.exp(score / temperature) for score in row))
            for column, score in enumerate(row):
                target = 1 - miss if column == true else miss / 4
                total -= target * (score / temperature - normaliser)
        return total

    assert all(smoothed(found) <= smoothed(found * factor) for factor in (0.5, 0.99, 1.01, 2.0))


def test_images_that_are_all_right_leave_a_doubt():
    scores = np.eye(3)[np.arange(30) % 3]
    temperature = fit_temperature(scores, np.arange(30) % 3)
    confidence = math.exp(1 / temperature) / (math.exp(1 / temperature) + 2)
    assert confidence == pytest.approx(31 / 32, abs=1e-4)
    # A class that is impossible changes nothing, and images of it are left out.
    wide = np.concatenate([scores, np.full((30, 1), -np.inf)], axis=1)
    with_unknown = np.concatenate([wide, wide[:1]]), np.append(np.arange(30) % 3, 3)
    assert fit_temperature(*with_unknown) == pytest.approx(temperature, rel=1e-4)
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 1.0


def image_loop(values, labels, draws, rng):
    """Draws one image at a time from a class's own and two of any class; not moved to the observed mean."""
    classes = np.unique(labels)
    found = np.empty((draws, 2))
    for draw in range(draws):
        sums = []
        for label in classes:
            own = values[labels == label]
            picks = rng.integers(0, len(own) + 2, len(own))
            others = rng.choice(values, len(own))
            sums.append(np.where(picks < len(own), own[np.minimum(picks, len(own) - 1)], others).sum())
        counts = [(labels == label).sum() for label in classes]
        found[draw] = sum(sums) / len(values), np.mean([s / n for s, n in zip(sums, counts, strict=True)])
    return found


@pytest.mark.parametrize("groups", [None, "lone", "pairs"])
def test_draws_have_the_spread_of_a_loop_and_the_observed_mean(groups):
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [6, 20, 60])
    values = rng.choice([-1, 0, 1], 86, p=[0.2, 0.3, 0.5])
    columns = {None: None, "lone": np.append(np.full(85, -1), 3), "pairs": np.arange(86) // 2}[groups]
    if groups == "pairs":  # two images of a group are right together: half as many that vary
        values = np.repeat(values[:43], 2)
    acc, mcr = resample(values, labels, columns, draws=8000, seed=1)
    observed = values.mean(), np.mean([values[labels == label].mean() for label in (0, 1, 2)])
    assert (acc.mean(), mcr.mean()) == pytest.approx(observed, abs=1e-12)
    halved = slice(None, None, 2) if groups == "pairs" else slice(None)
    loop = image_loop(values[halved], labels[halved], 1500, rng)
    assert (acc.std(), mcr.std()) == pytest.approx(loop.std(axis=0), rel=0.07)


def test_groups_that_hold_several_classes_stay_together():
    # Every group holds an image of class 0 that is right and one of class 1 that is wrong.
    labels, groups = np.tile([0, 1], 10), np.repeat(np.arange(10), 2)
    acc, mcr = resample((labels == 0).astype(np.int64), labels, groups, draws=500)
    np.testing.assert_allclose(acc, 0.5, atol=1e-12)
    np.testing.assert_allclose(mcr, 0.5, atol=1e-12)


@pytest.mark.parametrize("has_groups", [False, True])
def test_a_thousand_draws_of_ten_thousand_images_are_quick(has_groups):
    rng = np.random.default_rng(3)
    labels, values = rng.integers(0, 100, 10000), rng.integers(0, 2, 10000)
    groups = rng.integers(0, 4000, 10000) if has_groups else None
    first = resample(values, labels, groups)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        again = resample(values, labels, groups)
        seconds.append(time.process_time() - started)
    np.testing.assert_array_equal(first, again)
    assert min(seconds) < (2.0 if has_groups else 0.2)


def noisy(seed, num, spread, num_classes=4):
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    vectors = np.eye(num_classes, 6)[labels] + rng.normal(size=(num, 6)) * spread
    return Embedded(np.arange(num), vectors.astype(np.float32), labels)


def test_a_score_has_its_interval_and_two_are_compared_by_pairs():
    train, part = noisy(0, 80, 0.3), noisy(1, 200, 0.3)
    good, bad = (
        score_head(fit_head(HeadConfig(kind="knn", metric=metric, k_p=k), train, np.arange(4)), part)
        for metric, k in (("l2", 20), ("l2", 1))
    )
    for score in (good, bad):
        is_right = score.predictions == part.labels
        assert score.acc == is_right.mean()
        assert score.mcr == pytest.approx(np.mean([is_right[part.labels == c].mean() for c in range(4)]))
        assert 0 <= score.acc_interval[0] < score.acc < score.acc_interval[1] <= 1
        np.testing.assert_array_equal(score.predictions, score.probabilities.argmax(axis=1))
    difference = compare(good, bad)
    assert difference.difference == pytest.approx(good.mcr - bad.mcr)
    assert difference.interval[0] < difference.difference < difference.interval[1]
    back = compare(bad, good)
    assert back.difference == -difference.difference
    same = compare(good, good, "acc")
    assert (same.difference, same.interval, same.is_more_than_noise) == (0.0, (0.0, 0.0), False)
    with pytest.raises(RequestError, match="on the same images"):
        compare(good, score_head(fit_head(HeadConfig(k_p=1), train, np.arange(4)), noisy(1, 199, 0.3)))
    with pytest.raises(DataError, match="no images to score"):
        score_head(fit_head(HeadConfig(k_p=1), train, np.arange(4)), part.rows(np.zeros(200, dtype=bool)))


def test_calibration_changes_confidence_and_no_prediction():
    train, validation, test = noisy(0, 80, 0.5), noisy(1, 400, 0.5), noisy(2, 2000, 0.5)
    config = HeadConfig(kind="prototypes")
    head = fit_head(config, train, np.arange(4))
    calibrated = calibrate(config, head, validation)
    before, after = score_head(head, test), score_head(head.with_temperature(calibrated.temperature), test)
    np.testing.assert_array_equal(before.predictions, after.predictions)
    assert after.ece < 0.5 * before.ece
    warmer = head.with_temperature(calibrated.temperature)
    true_class = np.arange(len(validation.labels)), validation.labels
    assert (
        np.log(warmer.probabilities(validation.vectors)[true_class]).mean()
        > np.log(head.probabilities(validation.vectors)[true_class]).mean()
    )


def test_shared_searches_give_the_scores_of_single_heads():
    train, part = noisy(0, 60, 0.5), noisy(1, 100, 0.5)
    configs = candidate_heads(train)
    kinds = [config.kind for config in configs]
    assert set(kinds) == {"prototypes", "knn", "logistic", "lmnn"}
    found = score_heads(configs, train, part, np.arange(4))
    assert [one.config.name for one in found] == [config.name for config in configs]
    for one in found:
        alone = score_head(fit_head(one.config, train, np.arange(4)), part)
        np.testing.assert_allclose(alone.probabilities, one.score.probabilities, atol=1e-9)
    choice = choose(found, "acc")
    best = choice.candidates[choice.best]
    assert best.score.acc == max(one.score.acc for one in found)
    assert choice.config == best.config
    for place, one in enumerate(found):
        if place != choice.best:
            assert (place in choice.equal) == (not compare(best.score, one.score, "acc").is_more_than_noise)


def test_candidates_are_those_that_the_data_can_serve():
    even = noisy(0, 40, 0.5)
    names = {config.name for config in candidate_heads(even)}
    assert "knn l2 k_p=10" in names
    assert "knn l2 k_p=20" not in names  # classes of 10
    assert not any("balanced" in name for name in names)
    with_logits = Embedded(even.ids[1:], even.vectors[1:], even.labels[1:], np.zeros((39, 4), np.float32))
    names = {config.name for config in candidate_heads(with_logits)}
    assert {"softmax tau=0", "softmax tau=0.5", "softmax tau=1"} <= names
    assert any("balanced" in name for name in names)
    unit = Embedded(even.ids, even.vectors / np.linalg.norm(even.vectors, axis=1, keepdims=True), even.labels)
    assert not any(
        config.metric == "cosine"
        for config in candidate_heads(unit)
        if config.kind == "knn" and config.k_p != 1
    )
    large = Embedded(np.arange(20000), np.ones((20000, 1280), np.float32), np.arange(20000) % 50)
    assert {config.kind for config in candidate_heads(large)} == {"prototypes", "knn"}
    one = even.rows(even.labels == 0)
    assert {config.kind for config in candidate_heads(one)} == {"prototypes", "knn"}


def test_an_interval_is_its_percentiles():
    assert interval_of(np.arange(1001.0)) == pytest.approx((25.0, 975.0))
