"""Prototypes by images, runs class by class, logged curves: against plain loops, `evaluate`, and their errors."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

from cluster.commands.plot import plot
from fsl_dist.config import load_config, load_evaluation, load_run
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.evaluation.report import evaluate_run
from fsl_dist.metrics.class_scores import Repeated
from fsl_dist.plots import prototype_examples as examples
from fsl_dist.plots.class_accuracy import measure_class_accuracies
from fsl_dist.plots.curves import read_curve
from fsl_dist.plots.picture_files import name_runs
from fsl_dist.plots.query_picture import choose_shown
from fsl_dist.plots.run_draws import open_embedded
from fsl_dist.training.launch import train_run
from index.base.errors import RequestError

call = partial(commands.call, plot)
refusal = partial(commands.refusal, plot)

NOVEL = ("seven", "eight")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", *NOVEL)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven base classes, the first the largest (13 … 7 training images, 6 test images each), two novel of 9 images."""
    source, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    rows = ["file,class,split"]
    for label, name in enumerate(NAMES):
        splits = ["novel"] * 9 if name in NOVEL else ["train"] * (13 - label) + ["test"] * 6
        for number, split in enumerate(splits):
            grey = rng.integers(0, 120, size=(8, 8), dtype=np.uint8)
            grey[label % 8] += 100
            Image.fromarray(grey).save(source / f"{name}-{number}.png")
            rows.append(f"{name}-{number}.png,{name},{split}")
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("packed") / "shapes"
    pack(source, out, PackOptions(columns=TableColumns(table=str(source / "labels.csv"), split="split")))
    return out


@pytest.fixture(scope="module")
def features(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise about a centre a class, so that some images are taken for another class."""
    catalogue, rng = Catalogue.open(shapes), np.random.default_rng(1)
    centres = rng.normal(size=(catalogue.num_classes, 6))
    path = tmp_path_factory.mktemp("features") / "x.npy"
    points = centres[catalogue.labels] + rng.normal(size=(catalogue.num_samples, 6))
    np.save(path, points.astype(np.float32))
    return path


def train(shapes: Path, features: Path, run: Path, *more: str) -> Path:
    train_run(
        load_config(
            None,
            [
                f"data.dataset={shapes}", f"data.features={features}", f"run.dir={run}", "backbone.name=mlp",
                "backbone.hidden=[8]", "training.epochs=0", "training.patience=0", *more,
            ],
        )
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def pcn(shapes: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        shapes, features, tmp_path_factory.mktemp("pcn") / "run", "method.kind=pcn", "method.clusters=3",
        "method.novel_clusters=2", "method.temperature=1.5", "evaluation.novel_shots=4", "evaluation.novel_test=5",
        "evaluation.draws=3", "evaluation.delta_tau=[0,2]", "episode.k_shot=2", "episode.n_query=2", "episode.n_way=4",
    )  # fmt: skip


@pytest.fixture(scope="module")
def classifier(shapes: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ce") / "run"
    return train(shapes, features, run, "method.kind=cross_entropy", "evaluation.k_p=[3,1]")


def answer(*arguments: object) -> dict:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def squared(a: np.ndarray, b: np.ndarray) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def test_nearest_image_of_a_point_is_the_loops() -> None:
    rng = np.random.default_rng(2)
    points, vectors = rng.normal(size=(5, 4)) + 30, rng.normal(size=(23, 4)) + 30
    vectors[20] = vectors[3]
    expected = [min(range(23), key=lambda row: squared(point, vectors[row])) for point in points]
    assert examples.find_nearest(points, vectors.astype(np.float64)).tolist() == expected


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_responsibilities_are_the_loops_and_sum_to_one(temperature: float) -> None:
    rng = np.random.default_rng(3)
    x, means = rng.normal(size=4).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    weights = [math.exp(-squared(x, mean) / temperature) for mean in means]
    shares = examples.share_among(x, means, temperature)
    np.testing.assert_allclose(shares, [weight / sum(weights) for weight in weights], rtol=1e-9)
    assert shares.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("is_right", "shown"),
    [
        ([1, 0, 1, 1, 0, 0, 1], [0, 6, 1, 5]),
        ([1, 1, 1, 1, 1, 0], [0, 2, 4, 5]),
        ([0, 0, 0, 1, 0], [3, 0, 1, 4]),
        ([1, 0], [0, 1]),
        ([], []),
    ],
)
def test_queries_are_half_wrong_where_they_can_be(is_right: list[int], shown: list[int]) -> None:
    assert examples.choose_queries(np.array(is_right, dtype=bool)).tolist() == shown


def test_a_prototype_is_shown_by_the_nearest_image_it_was_made_from(
    shapes: Path, pcn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pictures" / "p.png"
    found = answer("prototypes", pcn, "--out", out, "--draw", 1)
    # The 4 largest base and the 2 novel classes; of those no more than the 4 shots are learnt from.
    assert [(shown["name"], shown["is_novel"], shown["num_images"]) for shown in found["classes"]] == [
        ("zero", False, 13), ("one", False, 12), ("two", False, 11), ("three", False, 10),
        ("eight", True, 4), ("seven", True, 4),
    ]  # fmt: skip
    catalogue = Catalogue.open(shapes)
    with open_embedded(pcn) as embedded:
        draw = embedded.draw(1)
        vectors = np.zeros((catalogue.num_samples, embedded.gallery.dim))
    for images in (draw.learnt, draw.tested):
        vectors[images.ids] = images.vectors
    prototypes = dict(zip(draw.prototypes.labels.tolist(), range(99), strict=False))
    predicted = dict(zip(draw.tested.ids.tolist(), draw.predicted.tolist(), strict=True))
    label_of = {name: label for label, name in enumerate(catalogue.class_names)}

    def means(name: str) -> np.ndarray:
        place = prototypes[label_of[name]]
        return draw.prototypes.means[place][draw.prototypes.mask[place]]

    def nearest(name: str) -> list[int]:
        own = [i for i in draw.learnt.ids.tolist() if catalogue.labels[i] == label_of[name]]
        return [min(own, key=lambda i: squared(mean, vectors[i])) for mean in means(name)]

    wrong = 0
    for shown in found["classes"]:
        assert shown["nearest"] == nearest(shown["name"])
        assert len(shown["nearest"]) == (2 if shown["is_novel"] else 3)
        assert len(shown["queries"]) == 4
        for query in shown["queries"]:
            taken_for = catalogue.label_name(predicted[query["id"]])
            assert (query["predicted"], query["is_right"]) == (taken_for, taken_for == shown["name"])
            assert catalogue.label_name(int(catalogue.labels[query["id"]])) == shown["name"]
            assert query["nearest"] == nearest(taken_for)
            weights = [math.exp(-squared(vectors[query["id"]], mean) / 1.5) for mean in means(taken_for)]
            shares = [weight / sum(weights) for weight in weights]
            assert query["responsibilities"] == pytest.approx(shares, rel=1e-6)
            wrong += not query["is_right"]
    assert wrong > 0
    colours = {colour for _, colour in Image.open(out).getcolors(1 << 20)}
    assert {(0, 140, 70), (205, 40, 30), (0, 114, 178)} <= colours
    again = tmp_path / "again.png"
    answer("prototypes", pcn, "--out", again, "--draw", 1)
    assert again.read_bytes() == out.read_bytes()


def test_named_classes_and_other_settings(pcn: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    found = answer(
        "prototypes", pcn, "--out", out, "--classes", "six, seven",
        "evaluation.novel_shots=2", "evaluation.base_clusters=1", "evaluation.delta_tau=[3]",
    )  # fmt: skip
    assert [shown["name"] for shown in found["classes"]] == ["six", "seven"]
    assert [len(shown["nearest"]) for shown in found["classes"]] == [1, 2]
    assert found["classes"][1]["num_images"] == 2
    assert found["temperature"] == 4.5


def test_class_accuracies_average_to_what_evaluate_prints(pcn: Path, classifier: Path) -> None:
    scores = evaluate_run(pcn).metrics
    with open_embedded(pcn) as run:
        found = measure_class_accuracies(run)
        names = [run.catalogue.label_name(label) for label in found.labels.tolist()]
    is_novel = np.array([name in NOVEL for name in names])
    for group, members in (("base_novel", is_novel | True), ("base", ~is_novel), ("novel", is_novel)):
        score = scores[f"mca/{group}"]
        assert isinstance(score, Repeated)
        assert found.accuracies[members].mean() == pytest.approx(score.mean, abs=1e-12)
    with open_embedded(classifier) as run:
        found = measure_class_accuracies(run)
    assert found.protocol == "knn@3"
    assert found.accuracies.mean() == pytest.approx(evaluate_run(classifier).metrics["knn/mcr@3"], abs=1e-12)
    assert len(set(found.accuracies.tolist())) > 2


def test_two_runs_are_compared_by_class(
    shapes: Path, features: Path, pcn: Path, classifier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "c.png"
    found = answer("comparison", classifier, pcn, "--out", out)
    assert (found["protocol_a"], found["protocol_b"]) == ("knn@3", "prototypes")
    assert sorted(found["left_out"]) == sorted(NOVEL)
    sizes = {of_class["name"]: of_class["train_images"] for of_class in found["classes"]}
    assert sizes == {name: 13 - label for label, name in enumerate(NAMES) if name not in NOVEL}
    with open_embedded(classifier) as a, open_embedded(pcn) as b:
        for key, run in (("accuracy_a", a), ("accuracy_b", b)):
            of_run = measure_class_accuracies(run)
            by_name = dict(
                zip([run.catalogue.label_name(i) for i in of_run.labels], of_run.accuracies, strict=True)
            )
            assert all(of_class[key] == by_name[of_class["name"]] for of_class in found["classes"])
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    again = tmp_path / "again.png"
    copied = shutil.copytree(pcn, tmp_path / "pcn-copy")
    both = answer("comparison", pcn, copied, "--out", again)
    assert all(of_class["accuracy_a"] == of_class["accuracy_b"] for of_class in both["classes"])
    assert sum(of_class["is_novel"] for of_class in both["classes"]) == 2
    assert "scored by one run only: " in call("comparison", classifier, pcn, "--out", out).stdout


def test_mistakes_about_prototypes_and_comparisons(
    digits: Path, pcn: Path, classifier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.png"
    told = refusal("prototypes", classifier, "--out", out)
    assert "method.kind=cross_entropy" in told
    assert "method.kind=pcn" in told
    assert "did you mean 'seven'" in refusal("prototypes", pcn, "--out", out, "--classes", "zero,sevn")
    assert "draw=3 is outside 0 … 2" in refusal("prototypes", pcn, "--out", out, "--draw", 3)
    told = refusal("prototypes", pcn, "--out", out, "evaluation.delta_tau=[1,2]")
    assert "evaluation.delta_tau=[1]" in told
    assert "out=p.jpg must end in .png" in refusal("prototypes", pcn, "--out", "p.jpg")
    assert "is not a run folder" in refusal("prototypes", tmp_path, "--out", out)
    assert "is named twice" in refusal("comparison", pcn, pcn, "--out", out)
    catalogue, path = Catalogue.open(digits), tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(catalogue.num_samples, 4)).astype(np.float32))
    other = train(digits, path, tmp_path / "other", "method.kind=cross_entropy")
    told = refusal("comparison", pcn, other, "--out", out)
    assert "different data sets" in told
    assert not out.exists()


LINES = [
    {"step": 1, "epoch": 0, "train/loss": 4.0, "train/images_seen": 10.0},
    {"step": 2, "epoch": 0, "train/loss": 2.0, "train/images_seen": 20.0},
    {"step": 2, "epoch": 0, "eval/mca": 0.5},
    {"step": 3, "epoch": 1, "train/loss": 1.0, "train/images_seen": 35.0},
    {"step": 3, "epoch": 1, "eval/mca": 0.75},
]


def test_a_curve_is_over_epochs_or_images() -> None:
    run = Path("runs/a")
    assert read_curve(LINES, "eval/mca", "epoch", run) == ([1.0, 2.0], [0.5, 0.75])
    assert read_curve(LINES, "eval/mca", "images", run) == ([20.0, 35.0], [0.5, 0.75])
    assert read_curve(LINES, "train/loss", "epoch", run) == ([1.0, 2.0], [3.0, 1.0])
    assert read_curve(LINES, "train/loss", "images", run) == ([10.0, 20.0, 35.0], [4.0, 2.0, 1.0])
    with pytest.raises(RequestError, match=r"eval/knn/x .* \(eval/mca, train/images_seen, train/loss\)"):
        read_curve(LINES, "eval/knn/x", "epoch", run)
    with pytest.raises(RequestError, match=r"training\.log_train_knn=true logs it"):
        read_curve(LINES, "eval/knn/train_acc@5", "epoch", run)


def test_curves_of_runs_are_drawn(classifier: Path, tmp_path: Path) -> None:
    runs = [shutil.copytree(classifier, tmp_path / name / "seed-0") for name in ("a", "b")]
    out = tmp_path / "curves.png"
    assert "has logged nothing" in refusal("curves", *runs, "--out", out, "--metric", "eval/mca")
    for run, loss in zip(runs, (0.25, math.nan), strict=True):
        lines = [*LINES, {"step": 4, "epoch": 2, "train/loss": loss, "train/images_seen": 50.0}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert load_run(run).method.kind == "cross_entropy"
    found = answer("curves", *runs, "--out", out, "--metric", "train/loss")
    assert [curve["name"] for curve in found["curves"]] == ["a/seed-0", "b/seed-0"]
    assert [curve["values"] for curve in found["curves"]] == [[3.0, 1.0, 0.25], [3.0, 1.0, None]]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    first = out.read_bytes()
    answer("curves", *runs, "--out", out, "--metric", "train/loss")
    assert out.read_bytes() == first
    assert "is not a run folder" in refusal("curves", tmp_path, "--out", out)


def test_runs_are_named_by_the_folders_that_tell_them_apart() -> None:
    assert name_runs([Path("runs/a"), Path("b")]) == ["a", "b"]
    assert name_runs([Path("x/pn/seed-0"), Path("x/pcn/seed-0"), Path("x/pcn/seed-1")]) == [
        "pn/seed-0",
        "pcn/seed-0",
        "pcn/seed-1",
    ]


def test_queries_on_which_runs_differ_come_first() -> None:
    is_right = np.array([[1, 1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 0, 0]], dtype=bool)
    labels = np.array([0, 0, 1, 1, 2, 3, 4])
    # One a class; (wrong, right) and (right, wrong) before both right, before both wrong.
    assert choose_shown(is_right, labels, 2).tolist() == [3, 5]
    chosen = choose_shown(is_right, labels, 9)
    assert sorted(labels[chosen].tolist()) == [0, 1, 2, 3, 4]
    assert labels[chosen].tolist() == sorted(labels[chosen].tolist())
    assert choose_shown(is_right[:, :0], labels[:0], 3).tolist() == []


def test_queries_are_shown_with_the_answers_of_all_runs(
    shapes: Path, features: Path, pcn: Path, classifier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q.png"
    pn = train(
        shapes, features, tmp_path / "pn", "method.kind=pcn", "method.clusters=1", "method.novel_clusters=1",
        "method.memory=0", "evaluation.delta_tau=[0]", "episode.k_shot=2", "episode.n_query=2", "episode.n_way=4",
    )  # fmt: skip
    shots = ["evaluation.novel_shots=4", "evaluation.novel_test=5", "evaluation.fine_tune_epochs=1"]
    found = answer(
        "queries",
        pn,
        pcn,
        classifier,
        *shots,
        "--out",
        out,
        "--draw",
        1,
        "--protocols",
        "prototypes,prototypes,fine_tune",
    )
    assert found["protocols"] == ["prototypes", "prototypes", "fine_tune"]
    assert [query["is_novel"] for query in found["queries"]] == [False] * 6 + [True] * 2
    catalogue = Catalogue.open(shapes)
    with open_embedded(pcn) as embedded:
        draw = embedded.draw(1)
    said = dict(zip(draw.tested.ids.tolist(), draw.predicted.tolist(), strict=True))
    vectors = np.zeros((catalogue.num_samples, draw.tested.vectors.shape[1]))
    for images in (draw.learnt, draw.tested):
        vectors[images.ids] = images.vectors
    answers = []
    for query in found["queries"]:
        assert catalogue.label_name(int(catalogue.labels[query["id"]])) == query["name"]
        assert all(
            of_run["is_right"] == (of_run["predicted"] == query["name"]) for of_run in query["answers"]
        )
        of_pcn = query["answers"][1]
        label = said[query["id"]]
        assert of_pcn["predicted"] == catalogue.label_name(label)
        # The prototype of the largest responsibility is the nearest one of the class.
        place = draw.prototypes.labels.tolist().index(label)
        means = draw.prototypes.means[place][draw.prototypes.mask[place]]
        top = min(means, key=lambda mean: squared(mean, vectors[query["id"]]))
        own = [i for i in draw.learnt.ids.tolist() if catalogue.labels[i] == label]
        assert of_pcn["reason"] == min(own, key=lambda i: squared(top, vectors[i]))
        assert query["answers"][2]["reason"] is None
        answers.append([of_run["is_right"] for of_run in query["answers"]])
    assert any(len(set(of_query)) > 1 for of_query in answers)
    # fine_tune says what `evaluate --protocol fine_tune` scored.
    with open_embedded(classifier, load_evaluation(classifier, shots)) as embedded:
        tuned = embedded.tuned_draw(1)
    labels = catalogue.labels[tuned.ids]
    assert ((tuned.ranks == 0) == (tuned.predicted == labels)).all()
    by_id = dict(zip(tuned.ids.tolist(), tuned.predicted.tolist(), strict=True))
    for query in found["queries"]:
        assert query["answers"][2]["predicted"] == catalogue.label_name(by_id[query["id"]])
    compared = answer(
        "comparison",
        classifier,
        pcn,
        "--out",
        tmp_path / "c.png",
        "--protocols",
        "fine_tune,prototypes",
        *shots,
    )
    assert compared["protocol_a"] == "fine_tune"
    assert not compared["left_out"]
    scores = evaluate_run(
        classifier, protocol="fine_tune", settings=load_evaluation(classifier, shots)
    ).metrics
    score = scores["mca/base_novel"]
    assert isinstance(score, Repeated)
    mean = np.mean([of_class["accuracy_a"] for of_class in compared["classes"]])
    assert mean == pytest.approx(score.mean, abs=1e-12)
    # By neighbours, base classes alone; the image that stands for the answer is the nearest of that class.
    voted = answer("queries", classifier, "--out", out, "--classes", "zero,two")
    assert sorted((query["name"], query["is_novel"]) for query in voted["queries"]) == [
        ("two", False),
        ("zero", False),
    ]
    with open_embedded(classifier) as embedded:
        query_of = {int(i): v for i, v in zip(embedded.query.ids, embedded.query.vectors, strict=True)}
        learnt = embedded.learnt
    assert set(learnt.ids.tolist()) == set(catalogue.split_ids("train"))
    for query in voted["queries"]:
        of_run = query["answers"][0]
        same = [
            n
            for n, i in enumerate(learnt.ids)
            if catalogue.label_name(int(learnt.labels[n])) == of_run["predicted"]
        ]
        nearest = min(same, key=lambda n: squared(learnt.vectors[n], query_of[query["id"]]))
        assert of_run["reason"] == learnt.ids[nearest]


def test_mistakes_about_queries(pcn: Path, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.png"
    assert "2 protocols for 1 runs" in refusal("queries", pcn, "--out", out, "--protocols", "knn,knn")
    assert "3 protocols for 2 runs" in refusal(
        "comparison", pcn, classifier, "--out", out, "--protocols", "knn,knn,knn"
    )
    assert "protocol softmax must be one of" in refusal(
        "queries", pcn, "--out", out, "--protocols", "softmax"
    )
    assert "fine_tune belongs to method.kind=cross_entropy" in refusal(
        "queries", pcn, "--out", out, "--protocols", "fine_tune"
    )
    assert "did you mean 'zero'" in refusal("queries", pcn, "--out", out, "--classes", "zeero")
    assert "no run is named" in refusal("queries", "evaluation.draws=2", "--out", out)
