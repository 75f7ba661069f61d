"""`fsl-dist predict`: files in, classes out; scores against plain loops over the run's own embeddings."""

import json
import math
import os
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
from click.testing import Result
from commands import GREY_16_PX

from cluster.commands.predict import predict
from fsl_dist.config import load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.store import ShardStore
from fsl_dist.methods.prototypes import fit_prototypes
from fsl_dist.training.launch import train_run
from fsl_dist.training.trained import open_trained

call = partial(commands.call, predict)
refusal = partial(commands.refusal, predict)

SETTINGS = [
    *GREY_16_PX,
    "data.decoder=torchvision",
    "backbone.name=conv4",
    "backbone.width=8",
    "training.patience=0",
]
PCN = [
    "method.kind=pcn",
    "method.clusters=3",
    "method.novel_clusters=2",
    "episode.n_way=5",
    "episode.k_shot=3",
    "episode.n_query=2",
    "episode.per_epoch=4",
    "training.epochs=1",
]
NUM_QUERIES = 6


@pytest.fixture(scope="module")
def runs(base_novel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `pcn` and `knn` on the digits."""
    folder = tmp_path_factory.mktemp("runs")
    for name, method in (("pcn", PCN), ("knn", ["training.epochs=0", "evaluation.k_p=[3]"])):
        own = [f"data.dataset={base_novel}", f"run.dir={folder / name}"]
        train_run(load_config(None, [*SETTINGS, *method, *own]))
    return folder


@pytest.fixture(scope="module")
def images(base_novel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, int]:
    """Image files with their sample ids: test images of base classes and images of novel ones."""
    catalogue = Catalogue.open(base_novel)
    ids = np.concatenate([catalogue.select("test").ids[::7][:4], catalogue.select("novel").ids[[0, 30]]])
    return write(base_novel, ids, tmp_path_factory.mktemp("queries"))


def write(dataset: Path, ids: np.ndarray, folder: Path) -> dict[Path, int]:
    folder.mkdir(exist_ok=True, parents=True)
    stored = ShardStore(Catalogue.open(dataset)).read(ids)
    files = {folder / f"{sample_id}.png": int(sample_id) for sample_id in ids}
    for path, data in zip(files, stored, strict=True):
        path.write_bytes(data)
    return files


@pytest.fixture(scope="module")
def support(base_novel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Class folder → sample ids of its images, below the folder in ["."]."""
    novel = Catalogue.open(base_novel).select("novel")
    folder = tmp_path_factory.mktemp("support")
    classes = {"first novel": novel.of_class(0)[5:10], "second": novel.of_class(1)[5:9]}
    for name, ids in classes.items():
        write(base_novel, ids, folder / name)
    return {str(folder): np.empty(0), **classes}


def scores_of(answer: Result) -> list[dict[str, float]]:
    return [
        {scored["name"]: scored["score"] for scored in prediction["classes"]}
        for prediction in json.loads(answer.stdout)["predictions"]
    ]


@pytest.mark.parametrize("with_support", [False, True])
def test_a_pcn_run_scores_by_the_softmax_over_prototypes(
    runs: Path, images: dict[Path, int], support: dict[str, np.ndarray], with_support: bool
) -> None:
    folder, *novel = support
    options = ["--support", folder] if with_support else []
    answer = call(runs / "pcn", *images, *options, "--k", 20, "--json")
    assert answer.exit_code == 0, answer.output
    trained = open_trained(runs / "pcn")
    catalogue, embed = trained.catalogue, trained.embedder.embed
    train = catalogue.select("train")
    prototypes = fit_prototypes(embed(train.ids), train.sample_labels, 3, seed=0, epoch=0)
    means = {
        catalogue.class_names[label]: of_class[mask]
        for label, of_class, mask in zip(prototypes.labels, prototypes.means, prototypes.mask, strict=True)
    }
    if with_support:
        for number, name in enumerate(novel):
            vectors, label = embed(support[name]), len(catalogue.class_names) + number
            means[name] = fit_prototypes(vectors, np.full(len(vectors), label), 2, seed=0, epoch=0).means[0]
    for found, sample_id in zip(scores_of(answer), images.values(), strict=True):
        x = embed(np.array([sample_id]))[0].astype(np.float64)
        scores = {}
        for name, of_class in means.items():
            distances = [sum((a - float(b)) ** 2 for a, b in zip(x, mean, strict=True)) for mean in of_class]
            weights = [math.exp(-(d - min(distances)) / 3.0) for d in distances]
            scores[name] = -sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)
        best = max(scores.values())
        total = sum(math.exp(score - best) for score in scores.values())
        expected = {name: math.exp(score - best) / total for name, score in scores.items()}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1)
    if with_support:
        flags = {s["name"]: s["is_novel"] for s in json.loads(answer.stdout)["predictions"][0]["classes"]}
        assert {name for name, is_novel in flags.items() if is_novel} == set(novel)


def test_any_other_run_scores_by_its_neighbours_votes(
    runs: Path, images: dict[Path, int], support: dict[str, np.ndarray]
) -> None:
    folder, *novel = support
    answer = call(runs / "knn", *images, "--support", folder, "--json")
    assert answer.exit_code == 0, answer.output
    trained = open_trained(runs / "knn")
    catalogue, embed = trained.catalogue, trained.embedder.embed
    train = catalogue.select("train")
    gallery = [
        (catalogue.class_names[label], i) for i, label in zip(train.ids, train.sample_labels, strict=True)
    ]
    gallery += [(name, i) for name in novel for i in support[name]]
    vectors = embed(np.array([i for _, i in gallery])).astype(np.float64)
    for found, sample_id in zip(scores_of(answer), images.values(), strict=True):
        x = embed(np.array([sample_id]))[0].astype(np.float64)
        distances = [float(((x - vector) ** 2).sum()) for vector in vectors]
        nearest = sorted(zip(distances, (name for name, _ in gallery), strict=True))
        votes = [name for _, name in nearest[:3]]
        first = {name: min(d for d, other in nearest if other == name) for _, name in nearest}
        ranked = sorted(first, key=lambda name: (-votes.count(name), first[name]))[:5]
        assert list(found) == ranked
        assert found == pytest.approx({name: votes.count(name) / 3 for name in ranked})


def test_prototypes_are_kept_until_they_would_be_others(runs: Path, images: dict[Path, int]) -> None:
    first = call(runs / "pcn", *images, "--json")
    kept = runs / "pcn" / "evaluation" / "prototypes.npz"
    made = kept.stat().st_mtime_ns
    again = call(runs / "pcn", *images, "--json")
    assert again.stdout == first.stdout
    assert kept.stat().st_mtime_ns == made
    for damage in (b"", b"PK\x03\x04 cut"):
        kept.write_bytes(damage)
        assert call(runs / "pcn", *images, "--json").stdout == first.stdout
        assert kept.stat().st_size > len(damage)


def test_people_read_names_and_scores(
    runs: Path, images: dict[Path, int], support: dict[str, np.ndarray]
) -> None:
    query = next(iter(images))
    answer = call(runs / "pcn", query, "--support", next(iter(support)), "--k", 9)
    lines = answer.stdout.splitlines()
    assert lines[0] == str(query)
    assert len(lines) == 10
    assert sum(line.endswith("(novel)") for line in lines) == 2
    assert len(call(runs / "pcn", query, "--k", 2).stdout.splitlines()) == 3


def test_images_that_cannot_be_read_are_named_and_the_others_predicted(
    runs: Path, images: dict[Path, int], support: dict[str, np.ndarray], tmp_path: Path
) -> None:
    sound = list(images)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(sound[0].read_bytes()[:60])
    bad = [tmp_path / name for name in ("text.png", "none.png", "empty.png", "cut.png")] + [tmp_path]
    answer = call(runs / "knn", bad[0], sound[0], *bad[1:], sound[1], "--json")
    assert answer.exit_code == 1
    report = json.loads(answer.stdout)
    assert [prediction["image"] for prediction in report["predictions"]] == [str(sound[0]), str(sound[1])]
    assert {failed["image"] for failed in report["failed"]} == {str(path) for path in bad}
    told = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == len(bad)
    reasons = " ".join(told)
    for words in (
        "text.png is not an image that decodes: its format is unknown",
        "none.png cannot be read",
    ):
        assert words in reasons
    assert "empty.png has zero bytes" in reasons
    alone = scores_of(call(runs / "knn", sound[0], sound[1], "--json"))
    assert scores_of(answer) == alone
    nothing = call(runs / "pcn", bad[0], "--json")
    assert nothing.exit_code == 1
    assert json.loads(nothing.stdout)["predictions"] == []
    # A bad support image is left out of its class in the same way.
    folder = tmp_path / "support"
    (folder / "new").mkdir(parents=True)
    (folder / "new" / "good.png").write_bytes(sound[-1].read_bytes())
    (folder / "new" / "bad.png").write_text("no image")
    answer = call(runs / "pcn", sound[-1], "--support", folder, "--json")
    assert answer.exit_code == 1
    assert next(iter(scores_of(answer)[0])) == "new"
    (folder / "new" / "good.png").unlink()
    assert "no image of class 'new' can be read" in refusal(runs / "pcn", sound[0], "--support", folder)


def test_requests_that_cannot_be_served_are_refused(
    runs: Path, base_novel: Path, images: dict[Path, int], tmp_path: Path
) -> None:
    query = next(iter(images))
    assert "is not a run folder" in refusal(tmp_path / "nowhere", query)
    assert "no such folder" in refusal(runs / "pcn", query, "--support", tmp_path / "nowhere")
    assert "contains no class folders" in refusal(runs / "pcn", query, "--support", tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("no image")
    assert "class 'new' contains no image" in refusal(runs / "pcn", query, "--support", tmp_path)
    catalogue = Catalogue.open(base_novel)
    known = catalogue.class_names[int(catalogue.select("train").labels[0])]
    (tmp_path / "new").rename(tmp_path / known)
    (tmp_path / known / "a.png").write_bytes(query.read_bytes())
    for run in ("pcn", "knn"):
        assert f"class '{known}' is one the run was trained on" in refusal(
            runs / run, query, "--support", tmp_path
        )
    assert call(runs / "pcn").exit_code == 2
    assert call(runs / "pcn", query, "--k", 0).exit_code == 2
    np.save(tmp_path / "x.npy", np.zeros((catalogue.num_samples, 4), dtype=np.float32))
    on_features = [
        f"data.dataset={base_novel}", f"run.dir={tmp_path / 'mlp'}", f"data.features={tmp_path / 'x.npy'}",
        "backbone.name=mlp", "training.epochs=0",
    ]  # fmt: skip
    train_run(load_config(None, on_features))
    assert "predict needs images" in refusal(tmp_path / "mlp", query)


def test_names_that_are_not_utf8_are_shown_with_escapes(
    runs: Path, images: dict[Path, int], tmp_path: Path
) -> None:
    first, second, *_ = images
    query = tmp_path / os.fsdecode(b"caf\xe9.png")
    query.write_bytes(first.read_bytes())
    folder = tmp_path / "novel" / os.fsdecode(b"na\xefve")
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"\xff.png")).write_bytes(second.read_bytes())
    (folder / os.fsdecode(b"\xfe.png")).write_bytes(b"no image")
    found = call(runs / "knn", query, "--support", folder.parent, "--k", "99", "--json")
    assert found.exit_code == 1
    report = json.loads(found.stdout)
    assert report["predictions"][0]["image"].endswith(r"/caf\xe9.png")
    assert [scored["name"] for scored in report["predictions"][0]["classes"] if scored["is_novel"]] == [
        r"na\xefve"
    ]
    assert report["failed"][0]["image"].endswith(r"/na\xefve/\xfe.png")


def test_novel_classes_are_read_as_classes_are(runs: Path, images: dict[Path, int], tmp_path: Path) -> None:
    known = Catalogue.open(open_trained(runs / "knn").config.data.dataset).class_names[0]
    image = next(iter(images))
    for name in (f" {known}\u200b", "e\u0301"):
        (tmp_path / "novel" / name).mkdir(parents=True)
        (tmp_path / "novel" / name / "0.png").write_bytes(image.read_bytes())
    assert f"class '{known}' is one the run was trained on" in refusal(
        runs / "knn", image, "--support", tmp_path / "novel"
    )
