"""Few-shot classification by nearest neighbours, against plain float64 loops."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.config import load_config
from fsl_dist.errors import RequestError, TrainingError
from fsl_dist.evaluation.report import evaluate_run
from fsl_dist.metrics import few_shot_knn as module
from fsl_dist.metrics.class_scores import Repeated
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.metrics.few_shot import draw_novel
from fsl_dist.metrics.few_shot_knn import evaluate_few_shot_knn, find_nearest, join_nearest, rank_classes
from fsl_dist.metrics.knn import vote
from fsl_dist.training.launch import train_run
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_trained

SCORES = ("mca", "recall@5", "recall@10", "balanced_recall@5", "balanced_recall@10")


def squared(x, y):
    return sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))


def negated_product(x, y):
    return -sum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def reference_ranking(x, gallery, labels, k_p, distance):
    """Classes from best to worst for one query, plain loops."""
    found = sorted((distance(x, y), int(label)) for y, label in zip(gallery, labels, strict=True))
    votes, nearest = {}, {}
    for place, (d, label) in enumerate(found):
        votes[label] = votes.get(label, 0) + (place < k_p)
        nearest[label] = min(d, nearest.get(label, d))
    return sorted(votes, key=lambda label: (-votes[label], nearest[label], label)), votes


@pytest.mark.parametrize(("metric", "distance"), [("l2", squared), ("inner_product", negated_product)])
@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.0, 40.0]))
def test_the_ranking_of_classes_equals_plain_loops(metric, distance, seed, k_p, num_base, offset):
    rng = np.random.default_rng(seed)
    x, base, support = (offset + rng.normal(size=(n, 3)) for n in (5, num_base, 4))
    base_labels, support_labels = rng.choice([2, 7, 9], num_base), rng.choice([0, 8], 4)
    nearest = join_nearest(
        find_nearest(x, base, base_labels, 6, metric), find_nearest(x, support, support_labels, 6, metric)
    )
    order, votes = rank_classes(nearest, k_p)
    gallery, labels = np.concatenate([base, support]), np.concatenate([base_labels, support_labels])
    for row, query in enumerate(x):
        expected, of_class = reference_ranking(query, gallery, labels, k_p, distance)
        assert nearest.classes[order[row]].tolist() == expected
        assert votes[row].tolist() == [of_class[label] for label in expected]
    assert nearest.classes[order[:, 0]].tolist() == vote(nearest.labels, nearest.distances, k_p).tolist()


def test_ties_go_to_the_nearest_member_then_to_the_smaller_label():
    # Its mean is 0, so that no rounding breaks the ties.
    gallery = np.array([[1.0], [-1.0], [2.0], [-2.0], [3.0], [-3.0]])
    labels = np.array([5, 3, 3, 5, 4, 4])
    nearest = find_nearest(np.zeros((1, 1)), gallery, labels, 4)
    order, votes = rank_classes(nearest, 4)
    assert nearest.classes[order[0]].tolist() == [3, 5, 4]
    assert votes[0].tolist() == [2, 2, 0]


def test_a_gallery_in_blocks_is_the_gallery_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    x, gallery, labels = rng.normal(size=(13, 4)), rng.normal(size=(50, 4)), rng.integers(0, 6, 50)
    whole = find_nearest(x, gallery, labels, 3)
    monkeypatch.setattr(module, "_GALLERY_AT_A_TIME", 7)
    monkeypatch.setattr(module, "_DISTANCES_AT_A_TIME", 28)
    parts = find_nearest(x, gallery, labels, 3)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    np.testing.assert_allclose(parts.distances, whole.distances, rtol=1e-12)
    np.testing.assert_allclose(parts.of_class, whole.of_class, rtol=1e-12)


def few_shot_data(seed=0):
    """Nine base and four novel classes in eight dimensions, overlapping so that no score is 0 or 1."""
    rng = np.random.default_rng(seed)
    centres = 30.0 + rng.normal(size=(13, 8))

    def of(labels, number):
        every = np.repeat(labels, number)
        return (centres[every] + 0.9 * rng.normal(size=(len(every), 8))).astype(np.float32), every

    base = [0, 2, 3, 5, 7, 8, 9, 10, 12]
    return of(base, 12), of(base, 4), of([1, 4, 6, 11], 15)


def evaluate(train, test, novel, **settings_):
    return evaluate_few_shot_knn(
        *train,
        *test,
        *novel,
        config=EvaluationConfig(draws=3, novel_shots=3, novel_test=4, **settings_),
        seed=5,
        class_names=[f"n{label}" for label in range(13)],
    )


def test_protocol_equals_plain_loops():
    train, test, novel = few_shot_data()
    result = evaluate(train, test, novel, k_p=(1, 3))
    collected = {}
    for number in range(3):
        draw = draw_novel(novel[1], EvaluationConfig(novel_shots=3, novel_test=4), seed=5, draw=number)
        gallery = np.concatenate([train[0], novel[0][draw.support]])
        labels = np.concatenate([train[1], novel[1][draw.support]])
        samples = [("base", x, y) for x, y in zip(*test, strict=True)]
        samples += [("novel", novel[0][row], novel[1][row]) for row in draw.test]
        for k_p in (1, 3):
            hits = {}
            for kind, x, label in samples:
                ranked, _ = reference_ranking(x, gallery, labels, k_p, squared)
                for group in (kind, "base_novel"):
                    for k in (1, 5, 10):
                        hits.setdefault((group, k), {}).setdefault(int(label), []).append(label in ranked[:k])
            for (group, k), of_class in hits.items():
                every = [hit for some in of_class.values() for hit in some]
                balanced = sum(sum(some) / len(some) for some in of_class.values()) / len(of_class)
                names = {f"mca/{group};k_p={k_p}": balanced}
                if k > 1:
                    names = {
                        f"recall@{k}/{group};k_p={k_p}": sum(every) / len(every),
                        f"balanced_recall@{k}/{group};k_p={k_p}": balanced,
                    }
                for name, value in names.items():
                    collected.setdefault(name, []).append(value)
    assert set(result) == set(collected)
    assert len(result) == 2 * 3 * len(SCORES)
    for name, values in collected.items():
        value = result[name]
        assert isinstance(value, Repeated)
        assert (value.mean, value.std, value.n) == pytest.approx((np.mean(values), np.std(values), 3)), name
    assert 0.1 < result["mca/novel;k_p=1"].mean < 0.95
    assert result["mca/base;k_p=1"] != result["mca/base;k_p=3"]


def test_requests_that_cannot_be_served_are_refused():
    train, test, novel = few_shot_data()
    with pytest.raises(
        RequestError, match=r"novel_shots=30 with novel_test=4 needs 34 images .* 'n1' has 15"
    ):
        evaluate_few_shot_knn(
            *train, *test, *novel, config=EvaluationConfig(novel_shots=30, novel_test=4), seed=0,
            class_names=["", "n1"],
        )  # fmt: skip
    with pytest.raises(RequestError, match="class 'n5' has images in both"):
        evaluate(train, test, (novel[0], np.where(novel[1] == 6, 5, novel[1])))
    with pytest.raises(RequestError, match="no training images"):
        evaluate((train[0][:0], train[1][:0]), test, novel)
    broken = novel[0].copy()
    broken[:, 0] = np.inf
    with pytest.raises(TrainingError, match="not finite"):
        evaluate(train, test, (broken, novel[1]))


def test_a_class_without_training_images_counts_as_wrong(caplog):
    train, (x, labels), novel = few_shot_data()
    kept = train[1] != 3
    result = evaluate((train[0][kept], train[1][kept]), (x[labels == 3], labels[labels == 3]), novel)
    assert result["recall@10/base;k_p=5"].mean == 0
    assert "class 'n3'" in caplog.text


def test_without_base_test_images_only_novel_scores_remain():
    train, test, novel = few_shot_data()
    result = evaluate(train, (test[0][:0], test[1][:0]), novel, k_p=(3,))
    assert result["mca/base_novel;k_p=3"] == result["mca/novel;k_p=3"]
    assert "mca/base;k_p=3" not in result


def test_a_network_of_pcn_is_scored_by_neighbours(base_novel: Path, tmp_path: Path) -> None:
    """FT-1NN's rule on PCN's embedding: the nearest of all base training images and the draw's support."""
    run = tmp_path / "pcn"
    train_run(
        load_config(
            None,
            [
                f"data.dataset={base_novel}",
                "data.channels=1",
                "data.resize=exact",
                "data.resize_size=16",
                "data.image_size=16",
                "data.decoder=torchvision",
                f"run.dir={run}",
                "backbone.name=conv4",
                "backbone.width=8",
                "method.kind=pcn",
                "method.clusters=2",
                "episode.n_way=4",
                "episode.k_shot=3",
                "episode.n_query=2",
                "episode.per_epoch=2",
                "training.epochs=1",
                "training.patience=0",
                "evaluation.draws=2",
                "evaluation.k_p=[1]",
            ],
        )
    )
    scores = evaluate_run(run, protocol="few_shot_knn").metrics
    trained = open_trained(run)
    splits = split_run(trained.catalogue, trained.config)
    assert splits.query is not None
    assert splits.novel is not None
    gallery, query, novel = (
        (trained.embedder.embed(selection.ids), selection.sample_labels)
        for selection in (splits.gallery, splits.query, splits.novel)
    )
    of_draws = []
    for number in range(2):
        draw = draw_novel(novel[1], trained.config.evaluation, seed=0, draw=number)
        vectors = np.concatenate([gallery[0], novel[0][draw.support]])
        labels = np.concatenate([gallery[1], novel[1][draw.support]])
        right: dict[int, list[bool]] = {}
        for x, label in [*zip(*query, strict=True), *((novel[0][row], novel[1][row]) for row in draw.test)]:
            nearest = min((squared(x, y), int(other)) for y, other in zip(vectors, labels, strict=True))
            right.setdefault(int(label), []).append(nearest[1] == label)
        of_draws.append(np.mean([np.mean(of_class) for of_class in right.values()]))
    found = scores["mca/base_novel;k_p=1"]
    assert isinstance(found, Repeated)
    assert found.mean == pytest.approx(np.mean(of_draws), abs=1e-12)
    assert 0.05 < found.mean < 0.95


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
def test_equal_distances_go_to_the_smaller_label_whatever_the_rounding(metric, monkeypatch):
    monkeypatch.setattr(module, "_GALLERY_AT_A_TIME", 70)
    rng = np.random.default_rng(2)
    codes, labels = rng.integers(0, 2, (300, 32)).astype(np.float32), rng.integers(0, 9, 300)
    codes[:, 0] = 1
    queries, order = codes[:60], np.argsort(labels, kind="stable")
    nearest = join_nearest(
        find_nearest(queries, codes[labels != 4], labels[labels != 4], 5, metric),
        find_nearest(queries, codes[labels == 4], labels[labels == 4], 5, metric),
    )
    for row, query in enumerate(queries.astype(np.int64)):
        products = codes[order].astype(np.int64) @ query
        lengths = codes[order].astype(np.int64).sum(axis=1)
        costs = {
            "l2": lengths + query.sum() - 2 * products,
            "inner_product": -products,
            "cosine": -(products**2) / lengths / query.sum(),
        }[metric]
        by_cost = np.argsort(costs, kind="stable")[:5]
        assert nearest.labels[row].tolist() == labels[order][by_cost].tolist()
        assert nearest.distances[row].tolist() == costs[by_cost].tolist()
        assert nearest.of_class[row].tolist() == [costs[labels[order] == c].min() for c in range(9)]


def test_tight_classes_far_apart_keep_their_order():
    rng = np.random.default_rng(3)
    centres = 1e7 * rng.normal(size=(4, 16))
    labels = rng.integers(0, 4, 200)
    vectors = (centres[labels] + rng.normal(size=(200, 16))).astype(np.float32)
    nearest = find_nearest(vectors[:30], vectors, labels, 5)
    for row in range(30):
        costs = np.square(vectors.astype(np.float64) - vectors[row].astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(nearest.distances[row], np.sort(costs)[:5], rtol=1e-12)


def test_a_vector_of_zeros_wins_nothing_under_cosine():
    vectors = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    for queries, gallery, name in ((vectors, vectors[:1], "queries"), (vectors[:1], vectors, "gallery")):
        with pytest.raises(RequestError, match=f"{name} row 1 is all zeros and has no direction"):
            find_nearest(queries, gallery, np.arange(len(gallery)), 1, "cosine")
