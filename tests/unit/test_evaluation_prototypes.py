"""Prototypes and the few-shot protocol, against plain float64 loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from fsl_dist.errors import RequestError, TrainingError
from fsl_dist.methods.prototypes import fit_class_prototypes, fit_prototypes, join, stack_prototypes
from fsl_dist.metrics import prototypes as module
from fsl_dist.metrics.class_scores import Repeated
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.metrics.few_shot import draw_novel, draws_of
from fsl_dist.metrics.prototypes import evaluate_prototypes, prototype_scores


def reference_score(x, means, temperature):
    """PCN Eq. 1 with Eq. 3, one sample, one class, plain loops."""
    distances = [sum((float(a) - float(b)) ** 2 for a, b in zip(x, mean, strict=True)) for mean in means]
    nearest = min(distances)
    weights = [math.exp(-(d - nearest) / temperature) for d in distances]
    return -sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(0, 2**16),
    st.floats(0.05, 20.0),
    st.sampled_from([0.0, 16.0, -300.0]),
)
def test_scores_equal_plain_loops_on_offset_data(sizes, seed, temperature, offset):
    rng = np.random.default_rng(seed)
    means = [(offset + rng.normal(size=(size, 3))).astype(np.float32) for size in sizes]
    x = (offset + rng.normal(size=(6, 3))).astype(np.float32)
    scores = prototype_scores(x, stack_prototypes(means, np.arange(len(sizes))), temperature)
    expected = [[reference_score(row, of_class, temperature) for of_class in means] for row in x]
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)


def test_scores_keep_near_neighbours_apart_far_from_the_origin():
    """Norm 16, spread 0.01: in float32 the plain product would lose the second digit of these distances."""
    rng = np.random.default_rng(0)
    points = (4.0 + 0.01 * rng.normal(size=(40, 16))).astype(np.float32)
    proto = stack_prototypes(list(points[:20].reshape(5, 4, 16)), np.arange(5))
    expected = [[reference_score(x, means, 3.0) for means in points[:20].reshape(5, 4, 16)] for x in points]
    np.testing.assert_allclose(prototype_scores(points, proto, 3.0), expected, rtol=1e-8)


def test_padding_never_counts():
    """A padded slot is a zero vector: samples at zero would fall for it."""
    proto = stack_prototypes([np.ones((1, 2), np.float32), np.full((3, 2), 2, np.float32)], np.array([4, 9]))
    assert proto.mask.tolist() == [[True, False, False], [True, True, True]]
    np.testing.assert_allclose(prototype_scores(np.zeros((1, 2)), proto, 1e-3), [[-2.0, -8.0]])


def test_scores_in_chunks_are_the_scores_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    proto = stack_prototypes([rng.normal(size=(m, 4)).astype(np.float32) for m in (1, 3, 2)], np.arange(3))
    x = rng.normal(size=(23, 4))
    whole = prototype_scores(x, proto, 2.0)
    monkeypatch.setattr(module, "_DISTANCES_AT_A_TIME", 5 * 9)
    np.testing.assert_allclose(prototype_scores(x, proto, 2.0), whole, rtol=1e-12)


def test_join_keeps_both_label_spaces():
    rng = np.random.default_rng(2)
    base = stack_prototypes([rng.normal(size=(m, 3)).astype(np.float32) for m in (1, 4)], np.array([0, 5]))
    novel = stack_prototypes([rng.normal(size=(2, 3)).astype(np.float32)], np.array([3]))
    joined = join(base, novel)
    assert joined.labels.tolist() == [0, 5, 3]
    assert joined.mask.sum(axis=1).tolist() == [1, 4, 2]
    x = rng.normal(size=(5, 3))
    apart = np.concatenate([prototype_scores(x, part, 1.5) for part in (base, novel)], axis=1)
    np.testing.assert_allclose(prototype_scores(x, joined, 1.5), apart, rtol=1e-9)


def blobs(seed=0, per_blob=30):
    """Three tight clusters far apart and far from the origin: float32 [3 · per_blob, 2]."""
    rng = np.random.default_rng(seed)
    centres = np.array([[100.0, 0.0], [100.0, 5.0], [105.0, 0.0]])
    return (centres.repeat(per_blob, axis=0) + 0.01 * rng.normal(size=(3 * per_blob, 2))).astype(np.float32)


def test_kmeans_finds_the_clusters():
    points = blobs()
    means = fit_class_prototypes(points, 3, seed=0, epoch=0, label=0)
    expected = points.reshape(3, 30, 2).mean(axis=1)
    assert means.dtype == np.float32
    np.testing.assert_allclose(
        means[np.lexsort(means.T[::-1])], expected[np.lexsort(expected.T[::-1])], atol=1e-4
    )


def test_one_cluster_is_the_mean_and_one_a_point_is_the_points():
    points = blobs(per_blob=2)
    one = fit_class_prototypes(points, 1, seed=0, epoch=0, label=0)
    np.testing.assert_allclose(one, points.mean(axis=0, keepdims=True, dtype=np.float64), rtol=1e-6)
    every = fit_class_prototypes(points, 10, seed=0, epoch=0, label=0)
    np.testing.assert_array_equal(every, np.unique(points, axis=0))


def test_empty_clusters_are_dropped_without_a_warning():
    points = np.repeat(np.array([[0.0, 0.0], [1.0, 1.0]], dtype=np.float32), 6, axis=0)
    means = fit_class_prototypes(points, 4, seed=0, epoch=0, label=0)
    np.testing.assert_allclose(means[np.argsort(means[:, 0])], [[0, 0], [1, 1]], atol=1e-6)
    assert len(fit_class_prototypes(points, 12, seed=0, epoch=0, label=0)) == 2


def test_fit_depends_on_seed_epoch_and_class_alone():
    rng = np.random.default_rng(3)
    embeddings, labels = rng.normal(size=(400, 8)).astype(np.float32), rng.integers(0, 2, 400)
    both = fit_prototypes(embeddings, labels, 6, seed=1, epoch=2, starts=2)
    for label in (0, 1):
        alone = fit_class_prototypes(embeddings[labels == label], 6, seed=1, epoch=2, label=label, starts=2)
        np.testing.assert_array_equal(both.means[label], alone)
    with threadpool_limits(limits=2):
        threaded = fit_prototypes(embeddings, labels, 6, seed=1, epoch=2, starts=2)
    np.testing.assert_array_equal(both.means, threaded.means)
    other = fit_prototypes(embeddings, labels, 6, seed=1, epoch=3, starts=2)
    assert not np.array_equal(both.means, other.means)
    alone, renamed = (
        fit_class_prototypes(embeddings, 6, seed=1, epoch=2, label=label, starts=1) for label in (0, 1)
    )
    assert not np.array_equal(alone, renamed)


def test_embeddings_that_are_not_finite_are_refused():
    points = blobs()
    points[4, 0] = np.nan
    with pytest.raises(TrainingError, match="embeddings of class 7 contain values that are not finite"):
        fit_class_prototypes(points, 2, seed=0, epoch=0, label=7)


def few_shot_data(seed=0, spread=1.5):
    """Five base and three novel classes in eight dimensions, overlapping so that no score is 0 or 1."""
    rng = np.random.default_rng(seed)
    centres = 30.0 + rng.normal(size=(8, 8))

    def of(labels, number):
        every = np.repeat(labels, number)
        return (centres[every] + spread * rng.normal(size=(len(every), 8))).astype(np.float32), every

    # Base labels 0, 2, 3, 5, 7 and novel 1, 4, 6: neither is a range.
    return of([0, 2, 3, 5, 7], 20), of([0, 2, 3, 5, 7], 6), of([1, 4, 6], 15)


def evaluate(train, test, novel, *, temperature=3.0, **settings_):
    return evaluate_prototypes(
        *train,
        *test,
        *(novel or (None, None)),
        base_clusters=3,
        novel_clusters=2,
        temperature=temperature,
        config=EvaluationConfig(draws=3, kmeans_runs=2, **settings_),
        seed=5,
        class_names=[f"n{label}" for label in range(8)],
    )


GROUPS = ("base_novel", "base", "novel")
SCORES = ("mca", "recall@5", "recall@10", "balanced_recall@5", "balanced_recall@10")


def reference_protocol(train, test, novel, temperature):
    """The protocol's scores, draw by draw, with the project's draws and k-means and nothing else of it."""
    config = EvaluationConfig(draws=3, kmeans_runs=2)
    base = fit_prototypes(*train, 3, seed=5, epoch=0, starts=2)
    collected = {}
    for draw in range(3):
        drawn = draw_novel(novel[1], config, seed=5, draw=draw)
        support, tested = drawn.support, drawn.test
        fresh = fit_prototypes(novel[0][support], novel[1][support], 2, seed=5, epoch=draw, starts=2)
        classes = [
            (int(label), means[mask])
            for part in (base, fresh)
            for label, means, mask in zip(part.labels, part.means, part.mask, strict=True)
        ]
        samples = [("base", x, y) for x, y in zip(*test, strict=True)]
        samples += [("novel", novel[0][row], novel[1][row]) for row in tested]
        hits = {}
        for kind, x, label in samples:
            scored = [(-reference_score(x, means, temperature), at) for at, (_, means) in enumerate(classes)]
            ranked = [classes[at][0] for _, at in sorted(scored)]
            for group in (kind, "base_novel"):
                for k in (1, 5, 10):
                    hits.setdefault((group, k), {}).setdefault(int(label), []).append(label in ranked[:k])
        for (group, k), of_class in hits.items():
            every = [hit for some in of_class.values() for hit in some]
            mean_of_classes = sum(sum(some) / len(some) for some in of_class.values()) / len(of_class)
            names = {f"mca/{group}": mean_of_classes}
            if k > 1:
                names = {
                    f"recall@{k}/{group}": sum(every) / len(every),
                    f"balanced_recall@{k}/{group}": mean_of_classes,
                }
            for name, value in names.items():
                collected.setdefault(name, []).append(value)
    return {name: (np.mean(values), np.std(values)) for name, values in collected.items()}


def test_protocol_equals_plain_loops():
    train, test, novel = few_shot_data()
    result = evaluate(train, test, novel, delta_tau=(0.0, -2.0, 3.0))
    for suffix, delta in (("", 0.0), (";dtau=-2", -2.0), (";dtau=3", 3.0)):
        expected = reference_protocol(train, test, novel, 3.0 + delta)
        assert set(expected) == {f"{score}/{group}" for score in SCORES for group in GROUPS}
        for name, (mean, std) in expected.items():
            value = result[name + suffix]
            assert isinstance(value, Repeated)
            assert value.n == 3
            assert (value.mean, value.std) == pytest.approx((mean, std), abs=1e-12), name
    assert len(result) == 3 * len(SCORES) * len(GROUPS)
    assert 0.2 < result["mca/novel"].mean < 0.95
    assert result["mca/novel"].std > 0
    assert (
        result["mca/novel"] != result["mca/novel;dtau=3"] or result["mca/base"] != result["mca/base;dtau=3"]
    )


def test_without_novel_classes_the_scores_are_numbers_over_base():
    train, test, _ = few_shot_data()
    result = evaluate(train, test, None, delta_tau=(0.0, 3.0))
    assert set(result) == {f"{score}/base{suffix}" for score in SCORES for suffix in ("", ";dtau=3")}
    assert all(isinstance(value, float) for value in result.values())
    assert result["recall@5/base"] == 1.0  # five classes in all


def test_draws_are_disjoint_and_the_test_images_the_same_for_any_shots():
    labels = np.repeat([9, 4], [20, 12])
    for number in range(4):
        draw = draw_novel(labels, EvaluationConfig(novel_shots=5), seed=0, draw=number)
        more = draw_novel(labels, EvaluationConfig(novel_shots=7), seed=0, draw=number)
        assert not set(draw.support) & set(draw.test)
        assert len(set(draw.support)) == len(set(draw.test)) == 10
        assert sorted(labels[draw.support]) == sorted(labels[draw.test]) == [4] * 5 + [9] * 5
        assert draw.test.tolist() == more.test.tolist()
        assert not set(more.support) & set(draw.test)
    first, second = (draw.test.tolist() for draw in draws_of(labels, EvaluationConfig(draws=2), seed=0))
    assert first != second


def test_config_clusters_override_the_methods():
    train, test, novel = few_shot_data()
    result = evaluate(train, test, novel, delta_tau=(0.0,), base_clusters=1, novel_clusters=1)
    plain = evaluate_prototypes(
        *train,
        *test,
        *novel,
        base_clusters=1,
        novel_clusters=1,
        temperature=3.0,
        config=EvaluationConfig(draws=3, delta_tau=(0.0,)),
        seed=5,
    )
    assert result == plain


def test_a_class_without_training_images_counts_as_wrong(caplog):
    train, (x, labels), _ = few_shot_data(spread=1e-3)
    kept = train[1] != 3
    result = evaluate((train[0][kept], train[1][kept]), (x, labels), None, delta_tau=(0.0,))
    assert result["mca/base"] == pytest.approx(4 / 5)
    assert result["recall@10/base"] == pytest.approx(4 / 5)
    assert "class 'n3'" in caplog.text


def test_requests_that_cannot_be_served_are_refused():
    train, test, novel = few_shot_data()
    with pytest.raises(RequestError, match=r"evaluation\.delta_tau=-2 with method\.temperature=1 .* of -1;"):
        evaluate(train, test, novel, temperature=1.0)
    with pytest.raises(
        RequestError,
        match=r"evaluation\.novel_shots=10 with novel_test=5 needs 15 images .* class 'n6' has 14 \(1 classes",
    ):
        evaluate(train, test, (novel[0][:-1], novel[1][:-1]), novel_shots=10)
    with pytest.raises(RequestError, match="class 'n5' has images in both the training and the novel split"):
        evaluate(train, test, (novel[0], np.where(novel[1] == 6, 5, novel[1])))
    with pytest.raises(RequestError, match="nothing to test"):
        evaluate(train, (test[0][:0], test[1][:0]), None)
    with pytest.raises(RequestError, match="no training images"):
        evaluate((train[0][:0], train[1][:0]), test, None)
    with pytest.raises(RequestError, match="novel split contains no image"):
        evaluate(train, test, (novel[0][:0], novel[1][:0]))


def test_without_base_test_images_only_novel_scores_remain():
    train, test, novel = few_shot_data()
    result = evaluate(train, (test[0][:0], test[1][:0]), novel, delta_tau=(0.0,))
    assert {name.partition("/")[2] for name in result} == {"base_novel", "novel"}
    assert result["mca/base_novel"] == result["mca/novel"]
