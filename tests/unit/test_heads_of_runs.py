"""A run's head: chosen, kept, used by predict, evaluate and explain; classes that are added without training."""

import json
import shutil
import threading
from pathlib import Path

import commands
import numpy as np
import pytest
from commands import GREY_16_PX
from PIL import Image

import fsl_dist
from cluster.commands.explain import explain
from cluster.commands.head import add_class, choose_head, remove_class
from cluster.commands.predict import predict
from fsl_dist.config import load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import ConfigError, DataError, RequestError
from fsl_dist.evaluation.run_head import open_head
from fsl_dist.heads import Embedded, HeadConfig, fit_head, write_head
from fsl_dist.heads.added_classes import AddedClass, read_classes
from fsl_dist.heads.added_classes import add_class as append_class
from fsl_dist.metrics.retrieval import class_auc
from fsl_dist.training.launch import train_run
from fsl_dist.training.splits import split_run

SETTINGS = [*GREY_16_PX, "data.decoder=torchvision", "backbone.name=conv4", "backbone.width=8"]
CROSS_ENTROPY = ["method.kind=cross_entropy", "training.epochs=1", "training.patience=1"]


@pytest.fixture(scope="module")
def trained_runs(base_novel, tmp_path_factory):
    """Runs `frozen` and `softmax` on the digits; their files are not changed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, own in (("frozen", ["training.epochs=0", "training.patience=0"]), ("softmax", CROSS_ENTROPY)):
        train_run(
            load_config(None, [*SETTINGS, *own, f"data.dataset={base_novel}", f"run.dir={folder / name}"])
        )
    return folder


@pytest.fixture
def runs(trained_runs, tmp_path):
    """Copies of the runs."""
    return shutil.copytree(trained_runs, tmp_path / "runs")


@pytest.fixture(scope="module")
def images(base_novel, tmp_path_factory):
    """Files by class name: of two novel classes, and test images of base classes under `base`."""
    catalogue, folder = Catalogue.open(base_novel), tmp_path_factory.mktemp("images")
    novel, test = catalogue.select("novel"), catalogue.select("test")
    ids = {"base": test.ids[::9][:6]} | {
        catalogue.class_names[label]: novel.of_class(place)[:8]
        for place, label in enumerate(novel.labels[:2])
    }
    files = {}
    for name, of_class in ids.items():
        (folder / name).mkdir()
        files[name] = [folder / name / f"{sample}.png" for sample in of_class]
        for path, data in zip(files[name], ShardStore(catalogue).read(of_class), strict=True):
            path.write_bytes(data)
    return files


def embedded(run, selection):
    """A selection by the run's embedder alone."""
    trained = run.trained
    vectors = trained.embedder.embed(selection.ids)
    logits = trained.embedder.classify(vectors) if trained.config.method.traits.has_classifier else None
    return Embedded(selection.ids, vectors, selection.sample_labels, logits)


@pytest.mark.parametrize("name", ["frozen", "softmax"])
def test_the_best_head_is_kept_and_predicts(runs, images, name):
    with fsl_dist.open_run(runs / name) as run:
        assert run.head is None
        choice = run.choose_head()
        assert run.head == choice.config
        assert "softmax" in {one.config.kind for one in choice.candidates} or name == "frozen"
        best = choice.candidates[choice.best]
        assert best.score.mcr == max(one.score.mcr for one in choice.candidates)
        splits = split_run(run.data, run.config)
        np.testing.assert_array_equal(np.sort(best.score.ids), np.sort(splits.stop.ids))
        train, part = embedded(run, splits.gallery), embedded(run, splits.stop)
        head = fit_head(best.config, train, splits.gallery.labels)
        # Batches of other sizes round otherwise.
        np.testing.assert_allclose(
            head.probabilities(part.vectors, part.logits), best.score.probabilities, atol=2e-3
        )
        # Used, it is fitted to all training images.
        report = run.predict(images["base"], k=20)
        assert report.head == choice.config.name
        vectors = run.embed(images["base"])
        logits = run.trained.embedder.classify(vectors) if name == "softmax" else None
        expected = fit_head(choice.config, train, splits.gallery.labels).probabilities(vectors, logits)
        for prediction, row in zip(report, expected, strict=True):
            found = {one.name: one.score for one in prediction.classes}
            names = [run.data.class_names[label] for label in splits.gallery.labels]
            assert found == pytest.approx(dict(zip(names, row, strict=True)), abs=2e-3)
            assert [one.score for one in prediction.classes] == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    "config", [HeadConfig(kind="logistic", c=0.01), HeadConfig(kind="lmnn", pca=8, k_p=3)]
)
def test_what_takes_long_to_fit_is_kept(runs, images, config):
    with fsl_dist.open_run(runs / "frozen") as run:
        write_head(run.dir, config)
        first = run.predict(images["base"])
        kept = run.dir / "evaluation" / "head.npz"
        written = kept.stat().st_mtime_ns
        assert run.predict(images["base"]) == first
        assert kept.stat().st_mtime_ns == written
        train = open_head(run.trained)[1]
        kept.write_bytes(kept.read_bytes()[:100])  # fitted again
        assert run.predict(images["base"]) == first
        assert kept.stat().st_size > 100
        write_head(run.dir, HeadConfig(kind="knn", k_p=len(train.labels)))
        run.predict(images["base"][:1])


def test_the_protocol_scores_the_head_on_the_test_images(runs):
    with fsl_dist.open_run(runs / "softmax") as run:
        with pytest.raises(
            RequestError, match=r"head\.json, which is not there \(choose_head\(\) writes it\)"
        ):
            run.evaluate("head")
        write_head(run.dir, HeadConfig(kind="softmax"))
        scores, softmax = run.evaluate("head"), run.evaluate("softmax")
        assert set(scores) == {"head/acc", "head/mcr", "head/ece"}
        assert scores["head/acc"] == softmax["softmax/acc"]
        assert scores["head/mcr"] == pytest.approx(softmax["softmax/mcr"])
        write_head(run.dir, HeadConfig(kind="knn", metric="l2", k_p=5))
        scores, knn = run.evaluate("head"), run.evaluate("knn")
        assert scores["head/acc"] == knn["knn/acc@5"]
        assert scores["head/mcr"] == pytest.approx(knn["knn/mcr@5"])


def test_a_classifier_sees_embeddings_as_the_network_gives_them(base_novel, tmp_path):
    """An index by cosine answers vectors of length 1."""
    own = [*CROSS_ENTROPY, "index.metric=cosine", f"data.dataset={base_novel}", f"run.dir={tmp_path / 'run'}"]
    train_run(load_config(None, [*SETTINGS, *own]))
    with fsl_dist.open_run(tmp_path / "run") as run:
        write_head(run.dir, HeadConfig(kind="softmax"))
        splits = split_run(run.data, run.config)
        test = embedded(run, splits.query)
        weights = np.exp(test.logits.astype(np.float64))
        # Lengths decide how sure the classifier is, and so the order of the images of different classes.
        auc = class_auc(
            weights / weights.sum(axis=1, keepdims=True), splits.train.labels, test.labels, positive=None
        )
        assert run.evaluate("softmax")["softmax/auc"] == pytest.approx(auc, abs=1e-5)
        assert run.evaluate("head")["head/acc"] == run.evaluate("softmax")["softmax/acc"]
        logits = run.trained.embedder.classify(run.embed(splits.query.ids))
        head = open_head(run.trained)[0]
        found = head.probabilities(test.vectors, logits)
        np.testing.assert_allclose(
            found, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-3
        )


def test_a_head_that_does_not_fit_is_one_line(runs, images):
    with fsl_dist.open_run(runs / "frozen") as run:
        for text, part in (
            ('{"kind": "softmax"}', "which has none (choose_head() writes another head)"),
            ('{"kind": "knn", "k_p": 100000}', "has k_p=100000; "),
            ('{"kind": "nearest"}', 'kind="nearest" must be softmax'),
            ("{", "is damaged"),
        ):
            (run.dir / "head.json").write_text(text)
            with pytest.raises(ConfigError) as caught:
                run.predict(images["base"])
            assert part in str(caught.value)
            assert "\n" not in str(caught.value)
            assert "head.json" in str(caught.value)


def test_a_run_without_validation_images_says_so(runs, digits):
    run = runs / "unvalidated"
    own = ["method.kind=cross_entropy", "training.epochs=1", "training.patience=0"]
    train_run(load_config(None, [*SETTINGS, *own, f"data.dataset={digits}", f"run.dir={run}"]))
    message = commands.refusal(choose_head, run)
    assert "has no validation images" in message
    assert not (run / "head.json").exists()


@pytest.mark.parametrize("name", ["frozen", "softmax"])
@pytest.mark.parametrize("has_head", [False, True])
def test_an_added_class_is_found_and_can_be_removed(runs, images, name, has_head):
    novel = [key for key in images if key != "base"]
    with fsl_dist.open_run(runs / name) as run:
        if has_head:
            run.choose_head()
        before = run.predict(images["base"], k=20)
        trained_on = run.classes
        for one in novel:
            added = run.add_class(one, images[one][:5])
            assert added.vectors.shape == (5, run.trained.embedder.dim)
        assert run.classes == [*trained_on, *novel]
        # As support images given at once.
        report = run.predict(images["base"], k=20)
        for one in novel:
            run.remove_class(one)
        support = run.predict(images["base"], support={one: images[one][:5] for one in novel}, k=20)
        for left, right in zip(report, support, strict=True):
            assert [c.name for c in left.classes] == [c.name for c in right.classes]
            assert [c.score for c in left.classes] == pytest.approx(
                [c.score for c in right.classes], abs=2e-3
            )
        assert {c.name for c in report[0].classes if c.is_novel} == set(novel)
        assert sum(c.score for c in report[0].classes) == pytest.approx(1.0)
        if has_head:  # the old classes keep their order
            for left, right in zip(before, report, strict=True):
                assert [c.name for c in left.classes] == [c.name for c in right.classes if not c.is_novel]
        assert run.classes == trained_on
        assert run.predict(images["base"], k=20) == before


def test_adding_refuses_what_cannot_be_a_class(runs, images, tmp_path):
    novel = next(key for key in images if key != "base")
    (tmp_path / "text.png").write_text("no image")
    with fsl_dist.open_run(runs / "frozen") as run:
        for name, given, error, part in (
            (run.classes[0], images[novel], RequestError, "was trained on; a class to add must be new"),
            (" ", images[novel], RequestError, "is empty"),
            (novel, [], RequestError, "at least one image"),
            (novel, [images[novel][0], tmp_path / "text.png"], DataError, f"class '{novel}' was not added"),
            (novel, [images[novel][0], tmp_path / "gone.png"], DataError, "gone.png"),
        ):
            with pytest.raises(error) as caught:
                run.add_class(name, given)
            assert part in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not (run.dir / "classes").exists()
        run.add_class(novel, images[novel][:2])
        with pytest.raises(RequestError, match=r"was already added to"):
            run.add_class(novel, images[novel][2:])
        with pytest.raises(RequestError, match=r"was already added to"):
            run.predict(images["base"], support={novel: images[novel]})
        with pytest.raises(RequestError, match=f"class 'nobody' was not added to .*; added are: '{novel}'"):
            run.remove_class("nobody")


def make_class(name, value=1.0):
    return AddedClass(name, np.full((2, 3), value, np.float32), ("a", "b"), "best-1")


def test_records_survive_and_damage_is_found(tmp_path):
    for number in range(3):
        append_class(tmp_path, make_class(f"class {number}", number))
    assert [one.name for one in read_classes(tmp_path)] == ["class 0", "class 1", "class 2"]
    np.testing.assert_array_equal(read_classes(tmp_path)[2].vectors, np.full((2, 3), 2.0, np.float32))
    second = tmp_path / "classes" / "00000002.record"
    whole = second.read_bytes()
    for place in (0, 9, 12, len(whole) - 1):
        second.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"00000002\.record is damaged"):
            read_classes(tmp_path)
    second.unlink()
    with pytest.raises(DataError, match=r"00000002\.record is missing"):
        append_class(tmp_path, make_class("class 3"))


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    refused = []

    def write(number):
        for step in range(5):
            append_class(tmp_path, make_class(f"{number} {step}", number))
            try:
                append_class(tmp_path, make_class(f"shared {step}", number))
            except RequestError:
                refused.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [one.name for one in read_classes(tmp_path)]
    assert len(names) == len(set(names)) == 4 * 5 + 5
    assert len(refused) == 3 * 5


def test_another_network_needs_the_class_again(runs, images):
    with fsl_dist.open_run(runs / "frozen") as run:
        append_class(
            run.dir, AddedClass("x", np.ones((1, run.trained.embedder.dim), np.float32), ("a",), "best-0")
        )
        with pytest.raises(RequestError, match=r"class 'x' was added to .* at the checkpoint best-0"):
            run.predict(images["base"])
        run.remove_class("x")
        run.predict(images["base"])


def test_explanations_say_where_the_vote_and_the_answer_differ(runs, images, tmp_path):
    novel = next(key for key in images if key != "base")
    image = images[novel][0]
    with fsl_dist.open_run(runs / "frozen") as run:
        plain = run.explain([image], maps=False)[0]
        assert plain.answer is None
        assert not plain.is_disputed
        write_head(run.dir, HeadConfig(kind="prototypes"))
        run.add_class(novel, [image])
        predicted = run.predict([image])[0].classes[0]
        report = run.explain([image], maps=False, out=tmp_path / "why")
    one = report[0]
    assert one.answer == predicted
    assert one.answer.name == novel
    assert one.is_disputed  # no training image is of an added class
    assert one.votes == plain.votes
    page = (tmp_path / "why" / "index.html").read_text()
    assert "The nearest training images disagree" in page
    assert "That class was added without training" in page
    assert "head prototypes" in page
    assert report.to_json()["explanations"][0]["answer"]["name"] == novel
    Image.open(one.picture).verify()


def test_the_commands(runs, images, tmp_path):
    run, novel = runs / "softmax", next(key for key in images if key != "base")
    answer = commands.call(choose_head, run)
    assert answer.exit_code == 0, answer.exception
    assert "best" in answer.stdout
    assert f"next: fsl-dist evaluate {run} --protocol head" in answer.stdout
    found = json.loads(commands.call(choose_head, run, "--metric", "acc", "--json").stdout)
    assert [one["is_best"] for one in found["candidates"]].count(True) == 1
    kept = json.loads((run / "head.json").read_text())
    assert len(kept.pop("checksum")) == 8
    assert kept == found["head"]
    added = json.loads(commands.call(add_class, run, novel, *images[novel][:3], "--json").stdout)
    assert added["classes"][-1] == novel
    assert "head: " in commands.call(predict, run, images[novel][0]).stdout
    shown = commands.call(explain, run, images[novel][0], "--out", tmp_path / "why", "--no-maps").stdout
    assert "  answer: " in shown
    assert commands.call(remove_class, run, novel).stdout == f"{run}: removed class {novel}\n"
    assert "was not added" in commands.refusal(remove_class, run, novel)
    assert "was not added" in commands.refusal(add_class, run, "new", Path("gone.png"), exit_code=1)
