"""AUC of the vote, relevance, agreement with masks: against plain loops, and the protocols on a run."""

import io
import json
import logging
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.commands.run import evaluate
from fsl_dist.config import load_config, load_evaluation
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.store import ShardStore
from fsl_dist.embedder import Embedder
from fsl_dist.errors import ConfigError, DataError, RequestError, TrainingError
from fsl_dist.evaluation.activation_maps import foreground, jaccard, upsample
from fsl_dist.evaluation.mapped_images import _is_mean_of, map_images
from fsl_dist.evaluation.mask_agreement import masked_ids, read_masks
from fsl_dist.evaluation.report import evaluate_run
from fsl_dist.metrics import retrieval
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.models.backbones import build_network
from fsl_dist.training.launch import train_run
from fsl_dist.training.trained import open_trained


def reference_auc(scores, is_positive):
    """Share of (positive, negative) pairs in the right order, equal scores a half."""
    wins, pairs = 0.0, 0
    for score, positive in zip(scores, is_positive, strict=True):
        for other, other_positive in zip(scores, is_positive, strict=True):
            if positive and not other_positive:
                pairs += 1
                wins += 1.0 if score > other else 0.5 if score == other else 0.0
    return wins / pairs


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_counts_pairs(samples):
    scores, is_positive = (
        np.array([s for s, _ in samples], dtype=np.float64),
        np.array([p for _, p in samples]),
    )
    if is_positive.all() or not is_positive.any():
        return
    assert retrieval.auc(scores, is_positive) == pytest.approx(reference_auc(scores, is_positive), abs=1e-12)


def test_auc_refuses_what_is_no_number():
    with pytest.raises(TrainingError, match="1 of 2 scores are not numbers"):
        retrieval.auc(np.array([0.5, math.nan]), np.array([True, False]))


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_auc_and_relevance_of_retrieval_equal_plain_loops(seed):
    rng = np.random.default_rng(seed)
    neighbours = rng.choice([2, 3, 7], size=(12, 9))  # label 5 has queries and no training image
    targets = np.concatenate([[2, 3, 5], rng.choice([2, 3, 5], size=9)])
    groups, query_groups = rng.integers(-1, 3, size=(12, 9)), np.append(0, rng.integers(-1, 3, size=11))
    found = retrieval.evaluate_retrieval(
        neighbours, targets, classes=np.array([2, 3, 7]), ks=(4, 9), positive=None
    )
    for k in (4, 9):
        areas = []
        for label in (2, 3, 5):
            shares = [sum(1 for near in row[:k] if near == label) / k for row in neighbours]
            areas.append(reference_auc(shares, targets == label))
        assert found[f"auc@{k}"] == pytest.approx(sum(areas) / 3, abs=1e-12)
        alone = retrieval.evaluate_retrieval(
            neighbours, targets, classes=np.array([2, 3, 7]), ks=(k,), positive=3
        )
        assert alone == {f"auc@{k}": pytest.approx(areas[1], abs=1e-12)}
        alike = [
            sum(1 for near in row[:k] if near == own)
            for row, own in zip(groups, query_groups, strict=True)
            if own != -1
        ]
        assert retrieval.relevance(groups, query_groups, k) == pytest.approx(sum(alike) / len(alike))


def test_classes_without_a_query_are_named_and_left_out(caplog):
    caplog.set_level(logging.WARNING, "fsl_dist")
    neighbours, targets = np.array([[0, 0], [1, 2], [1, 1]]), np.array([0, 1, 1])
    found = retrieval.evaluate_retrieval(
        neighbours, targets, classes=np.arange(3), ks=(2,), positive=None, class_names=["a", "b", "c"]
    )
    assert found == {"auc@2": 1.0}
    assert "1 classes have no query" in caplog.text
    assert "class 'c'" in caplog.text


def test_an_auc_that_does_not_exist_is_refused():
    neighbours, classes = np.array([[0, 1], [1, 1]]), np.arange(3)
    names = ["a", "b", "c"]

    def of(targets, positive):
        retrieval.evaluate_retrieval(
            neighbours, np.array(targets), classes=classes, ks=(2,), positive=positive, class_names=names
        )

    with pytest.raises(RequestError, match="class 'c' has 0 of the 2 queries"):
        of([0, 1], 2)
    with pytest.raises(RequestError, match="class 'b' has 2 of the 2 queries"):
        of([1, 1], 1)
    with pytest.raises(RequestError, match="2 queries are of 1"):
        of([1, 1], None)
    with pytest.raises(DataError, match="no query to score"):
        of(np.empty(0, np.int64), None)
    assert retrieval.find_positive("b", names) == 1
    assert retrieval.find_positive("", names) is None
    with pytest.raises(RequestError, match=r"evaluation\.positive_class=melanom .*did you mean 'melanoma'\?"):
        retrieval.find_positive("melanom", ["nevus", "melanoma"])


@pytest.mark.parametrize("settings", [{"k": ()}, {"k": (3, 3)}, {"k": (0,)}, {"mask_above": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=rf"evaluation\.{next(iter(settings))}(\[0\])?="):
        EvaluationConfig(**settings)


def train(dataset, run, *more, backbone=("backbone.name=conv4", "backbone.width=12")):
    train_run(
        load_config(
            None,
            [
                f"data.dataset={dataset}", f"run.dir={run}", "data.resize_size=36", "data.image_size=32",
                "data.decoder=torchvision", *backbone, "training.epochs=0",
                "training.patience=0", "evaluation.k=[1,4]", *more,
            ],
        )
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def run(discs, tmp_path_factory):
    return train(discs, tmp_path_factory.mktemp("runs") / "run", "method.kind=cross_entropy")


def answer(*arguments):
    result = CliRunner().invoke(evaluate, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)["metrics"]


def test_the_protocol_scores_a_run_as_the_loops_do(discs, run):
    found = answer(run, "--protocol", "retrieval")
    assert list(found) == ["auc@1", "auc@4", "rel@1", "rel@4", "ja"]
    trained = open_trained(run)
    catalogue = trained.catalogue
    train, test = catalogue.select("train"), catalogue.select("test")
    gallery, queries = (trained.embedder.embed(part.ids).astype(np.float64) for part in (train, test))
    order = [sorted(range(len(gallery)), key=lambda j: (((q - gallery[j]) ** 2).sum(), j)) for q in queries]
    for k in (1, 4):
        near = [[train.ids[j] for j in row[:k]] for row in order]
        areas = []
        for label in (0, 1):
            shares = [sum(catalogue.labels[i] == label for i in ids) / k for ids in near]
            areas.append(reference_auc(shares, test.sample_labels == label))
        assert found[f"auc@{k}"] == pytest.approx(sum(areas) / 2)
        alike = [
            sum(catalogue.groups[i] == catalogue.groups[q] for i in ids)
            for q, ids in zip(test.ids, near, strict=True)
        ]
        assert found[f"rel@{k}"] == pytest.approx(np.mean(alike))
    red = catalogue.class_names.index("red <b>")
    assert answer(
        run, "--protocol", "retrieval", "evaluation.positive_class=red <b>", "evaluation.k=[4]"
    ) == {
        "auc@4": pytest.approx(areas[red]),
        "rel@4": found["rel@4"],
        "ja": found["ja"],
    }
    store, expected = ShardStore(catalogue), []
    for q, vector, row in zip(test.ids, queries, order, strict=True):
        (encoded,) = store.read_masks(np.array([q]))
        if encoded is None:
            continue
        mask = Image.open(io.BytesIO(encoded)).resize((43, 36), Image.Resampling.NEAREST)
        seen = np.asarray(mask.crop((6, 2, 38, 34))) > 0  # (43 − 32) / 2 is rounded half up
        maps = trained.embedder.map_images(trained.embedder.source.fetch(np.array([q]), None))[0]
        plane = np.zeros(maps.shape[1:])
        for z in range(len(maps)):
            plane += maps[z].astype(np.float64) * (vector[z] - gallery[row[0]][z]) ** 2
        expected.append(jaccard(foreground(upsample(plane[None], 32)[0]), seen))
    assert len(expected) == 12
    assert found["ja"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert answer(run, "--protocol", "maps") == {"ja": found["ja"]}
    nucleus = answer(run, "--protocol", "maps", "evaluation.mask_above=127")["ja"]
    assert nucleus != found["ja"]
    store.close()
    trained.embedder.source.close()


def test_the_classifiers_own_auc(run):
    trained = open_trained(run)
    test = trained.catalogue.select("test")
    logits = trained.embedder.classify(trained.embedder.embed(test.ids)).astype(np.float64)
    areas = []
    for label in (0, 1):
        odds = [math.exp(row[label]) / sum(math.exp(value) for value in row) for row in logits]
        areas.append(reference_auc(odds, test.sample_labels == label))
    assert answer(run, "--protocol", "softmax")["softmax/auc"] == pytest.approx(sum(areas) / 2)
    blue = answer(run, "--protocol", "softmax", "evaluation.positive_class=blue")["softmax/auc"]
    assert blue == pytest.approx(areas[0])
    trained.embedder.source.close()


def test_people_read_numbers_of_images(run):
    lines = CliRunner().invoke(evaluate, [str(run), "--protocol", "retrieval"]).stdout.splitlines()
    (relevance,) = [line.split() for line in lines if line.startswith("rel@4")]
    assert relevance[2:] == ["of", "4"]
    assert 0 <= float(relevance[1]) <= 4


def test_what_the_data_set_or_the_network_lacks(discs, digits, run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "fsl_dist")
    plain = train(digits, tmp_path / "plain", "method.kind=deep_knn")
    assert list(evaluate_run(plain, protocol="retrieval").metrics) == ["auc@1", "auc@4"]
    assert "rel@k is left out: it counts neighbours" in caplog.text
    assert "(method.kind=deep_knn; 10 classes, 0 groups" in caplog.text
    with pytest.raises(RequestError, match=r"method\.kind=deep_knn.*none of the 100 queries.*mask_column"):
        evaluate_run(plain, protocol="maps")
    headed = train(discs, tmp_path / "headed", "backbone.embedding_dim=12", "method.kind=batch_hard")
    told = (
        r"mean of feature maps; .* has method\.kind=batch_hard with backbone\.name=conv4 and "
        r"backbone\.embedding_dim=12, which embeds by layers after its 12 feature maps"
    )
    with pytest.raises(RequestError, match=told):
        evaluate_run(headed, protocol="maps")
    caplog.clear()
    assert "ja" not in evaluate_run(headed, protocol="retrieval").metrics
    assert "ja is left out: activation maps need" in caplog.text
    mlp = ("backbone.name=mlp", "backbone.hidden=[8]")
    flat = train(discs, tmp_path / "flat", "method.kind=deep_knn", backbone=mlp)
    with pytest.raises(RequestError, match=r"backbone\.name=mlp, which has no feature maps"):
        evaluate_run(flat, protocol="maps")
    sphere = train(discs, tmp_path / "sphere", "method.kind=deep_knn", "method.normalise=true")
    assert 0 <= evaluate_run(sphere, protocol="maps").metrics["ja"] <= 1
    catalogue = Catalogue.open(discs)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(catalogue.num_samples, 3)).astype("f4"))
    on_features = f"data.features={tmp_path / 'x.npy'}"
    features = train(discs, tmp_path / "features", on_features, backbone=mlp)
    with pytest.raises(RequestError, match=r"trained on data\.features="):
        evaluate_run(features, protocol="maps")
    with pytest.raises(
        RequestError, match=r"evaluation\.k=40 is more than .*: 32 \(evaluation\.k=\[3, 20\]\)"
    ):
        evaluate_run(run, protocol="retrieval", settings=load_evaluation(run, ["evaluation.k=[3,20,40]"]))


class HeldMasks:
    """A store of masks given as bytes."""

    def __init__(self, masks):
        self.masks = masks

    def read_masks(self, ids):
        return [self.masks[int(i)] for i in ids]


def test_a_mask_that_is_no_image_or_of_another_size_is_named(discs, run):
    catalogue = Catalogue.open(discs)
    config = open_trained(run).config
    (sample,) = ids = masked_ids(catalogue, catalogue.select("test"))[:1]
    small = io.BytesIO()
    Image.new("L", (40, 48)).save(small, "PNG")
    for data, told in (
        (b"text", "does not decode: its format is unknown"),
        (small.getvalue(), "has 40 × 48 pixels, its image 48 × 40"),
    ):
        with pytest.raises(
            DataError, match=rf"the mask of sample '.*' \(id {sample}\) .* {told}; pack again"
        ):
            read_masks(catalogue, HeldMasks({int(sample): data}), ids, config)


@pytest.mark.parametrize(
    ("name", "has_maps"),
    [("alexnet", False), ("convnext_base", False), ("densenet121", True), ("efficientnet_b3", True), ("resnet18", True)],
)  # fmt: skip
def test_which_backbones_have_activation_maps(name, has_maps):
    torch.manual_seed(0)
    settings = [f"backbone.name={name}", "run.dir=r", "data.dataset=d", "method.normalise=false"]
    config = load_config(None, settings)
    network = build_network(config.backbone, sample_shape=(3, 64, 64))
    embedder = Embedder(
        network, source=None, device=torch.device("cpu"), batch_size=2, prefetch=1
    )  # no sample is fetched
    images = torch.randn(2, 3, 64, 64)
    if not has_maps:
        told = rf"backbone\.name={name}, which embeds by layers after its \d+ feature maps, not by their mean"
        with pytest.raises(RequestError, match=told):
            map_images(embedder, images, config)
        return
    mapped = map_images(embedder, images, config)
    np.testing.assert_allclose(mapped.maps.mean(axis=(2, 3)), mapped.vectors, rtol=1e-4, atol=1e-5)
    lame = np.array(mapped.vectors)
    lame[1] *= 1.01
    assert _is_mean_of(mapped.vectors, mapped.maps, False)
    assert not _is_mean_of(lame, mapped.maps, False)
    assert not _is_mean_of(mapped.vectors, mapped.maps, True)
