"""`fsl-dist explain`, `plot retrieval`, `plot maps`: what they show against plain loops over the run's own embeddings."""

import base64
import hashlib
import io
import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, refusal
from PIL import Image

import fsl_dist
from cluster.commands.explain import explain
from cluster.commands.plot import plot
from fsl_dist.config import load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.normalise import Normaliser
from fsl_dist.data.store import ShardStore
from fsl_dist.evaluation.activation_maps import activation_maps, upsample
from fsl_dist.evaluation.evidence import Evidence, Result, pixels_of
from fsl_dist.plots.map_overlay import overlay, ramp, range_text, tint
from fsl_dist.training.launch import train_run
from fsl_dist.training.trained import open_trained


def train(dataset, run, *more, backbone=("backbone.name=conv4", "backbone.width=12")):
    train_run(
        load_config(
            None,
            [
                f"data.dataset={dataset}", f"run.dir={run}", "data.resize_size=52", "data.image_size=48",
                "data.decoder=torchvision", *backbone, "training.epochs=0", "training.patience=0", *more,
            ],
        )
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def runs(discs, tmp_path_factory):
    """Two runs of one data set: `a` and, of another seed, `b`."""
    folder = tmp_path_factory.mktemp("runs")
    train(discs, folder / "a")
    train(discs, folder / "b", "run.seed=1")
    return folder


@pytest.fixture(scope="module")
def images(discs, tmp_path_factory):
    """Image files with their sample ids: two test images and a training image, under hostile names."""
    catalogue, folder = Catalogue.open(discs), tmp_path_factory.mktemp("queries")
    test, train = catalogue.select("test").ids, catalogue.select("train").ids
    ids = np.array([test[0], test[-1], train[3]])
    names = ["one.png", "<img src=x onerror=alert(1)>.png", "known.png"]
    for name, data in zip(names, ShardStore(catalogue).read(ids), strict=True):
        (folder / name).write_bytes(data)
    return {folder / name: int(sample) for name, sample in zip(names, ids, strict=True)}


def answer(verb, *arguments):
    result = call(verb, *arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def nearest(run, sample, k, *, leave_out=False):
    """(distance, id) of the k nearest training images, by plain loops."""
    trained = open_trained(run)
    train = trained.catalogue.select("train").ids
    query = trained.embedder.embed(np.array([sample]))[0].astype(np.float64)
    gallery = trained.embedder.embed(train).astype(np.float64)
    trained.embedder.source.close()
    found = sorted(
        (math.sqrt(sum((a - b) ** 2 for a, b in zip(query, row, strict=True))), int(i))
        for i, row in zip(train, gallery, strict=True)
    )
    return [pair for pair in found if not (leave_out and pair[1] == sample)][:k]


def test_neighbours_and_votes_are_those_of_the_loops(runs, images, tmp_path):
    found = answer(explain, runs / "a", *images, "--out", tmp_path / "why", "--k", 6)
    catalogue = open_trained(runs / "a").catalogue
    assert found["failed"] == []
    for shown, (path, sample) in zip(found["explanations"], images.items(), strict=True):
        assert shown["image"] == str(path)
        expected = nearest(runs / "a", sample, 6)
        assert [neighbour["id"] for neighbour in shown["neighbours"]] == [i for _, i in expected]
        distances = [neighbour["distance"] for neighbour in shown["neighbours"]]
        assert distances == pytest.approx([d for d, _ in expected], rel=1e-4, abs=1e-6)
        for neighbour in shown["neighbours"]:
            assert neighbour["label"] == catalogue.class_names[catalogue.labels[neighbour["id"]]]
            assert neighbour["group"] == catalogue.group_names[catalogue.groups[neighbour["id"]]]
            assert neighbour["key"] == catalogue.keys([neighbour["id"]])[0]
        labels = [neighbour["label"] for neighbour in shown["neighbours"]]
        for vote in shown["votes"]:
            assert vote["count"] == labels.count(vote["name"])
            assert vote["share"] == pytest.approx(vote["count"] / 6)
        assert sum(vote["count"] for vote in shown["votes"]) == 6
        with Image.open(shown["picture"]) as picture:
            assert picture.format == "PNG"
    assert found["explanations"][2]["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert {path.name for path in (tmp_path / "why").iterdir()} == {
        "index.html", "one.png", "<img src=x onerror=alert(1)>.png", "known.png",
    }  # fmt: skip


def test_long_names_of_images_are_cut_and_stay_apart(runs, images, tmp_path):
    data = next(iter(images)).read_bytes()
    stems = ["a" * 250, "b" + "a" * 249, "é" * 125, "c" * 200, "d" * 201]
    for stem in stems:
        (tmp_path / f"{stem}.png").write_bytes(data)
    # Twice: the second picture of each name has a number.
    paths = [str(tmp_path / f"{stem}.png") for stem in stems] * 2
    found = answer(explain, str(runs / "a"), *paths, "--out", str(tmp_path / "why"), "--no-maps")
    pictures = [Path(shown["picture"]) for shown in found["explanations"]]
    assert len(set(pictures)) == len(paths)
    assert all(picture.is_file() for picture in pictures)
    ends = [stem[-183:] if stem.isascii() else stem[-91:] for stem in stems]
    for picture, stem, end in zip(pictures[:5], stems, ends, strict=True):
        mark = hashlib.sha256(stem.encode()).hexdigest()[:16]
        assert picture.stem == (stem if len(stem.encode()) <= 200 else f"{end}~{mark}")


def test_equal_votes_go_to_the_nearest_member():
    def result(label, distance):
        return Result(
            0, "", label, "", distance, "distance", False, np.zeros((1, 1, 3), np.uint8), None, None
        )

    labels = ["b", "a", "c", "a", "b"]
    votes = Evidence(
        np.zeros((1, 1, 3), np.uint8), [result(label, place) for place, label in enumerate(labels)]
    ).votes
    assert [(vote.name, vote.count, vote.share) for vote in votes] == [
        ("b", 2, 0.4),
        ("a", 2, 0.4),
        ("c", 1, 0.2),
    ]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def pictures(page):
    """(class, alternative text, pixels) of every image of a page."""
    for tag, attributes in page.tags:
        if tag == "img":
            kind, _, data = attributes["src"].partition(",")
            assert kind == "data:image/png;base64"
            yield (
                attributes["class"],
                attributes["alt"],
                np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))),
            )


def test_the_page_holds_what_was_found_and_loads_nothing(runs, images, tmp_path):
    found = answer(explain, runs / "a", *images, "--out", tmp_path, "--k", 3)
    text = (tmp_path / "index.html").read_text("utf-8")
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "form"})
    assert not re.search(r"https?:|url\(|@import|srcset", text)
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for attributes in (attributes for _, attributes in page.tags):
        assert not any(name.startswith("on") for name in attributes)
    for path in images:
        assert unescape(path.name) in page.text
    assert "The 32 training images were compared" in page.text
    for neighbour in (n for explanation in found["explanations"] for n in explanation["neighbours"]):
        assert f"{neighbour['label']}group {neighbour['group']}" in page.text
    assert "red <b>" in page.text
    assert ("b", {}) not in page.tags
    trained = open_trained(runs / "a")
    source, catalogue = trained.embedder.source, trained.catalogue
    legend, *shown = pictures(page)
    assert legend[0] == "ramp"
    np.testing.assert_array_equal(legend[2], np.asarray(ramp()))
    assert "The maps have 3 × 3 values, from the network's last feature map." in page.text
    # A query, then per neighbour: itself, itself with its map, the query with its map.
    assert len(shown) == 3 * (1 + 3 * 5)
    for number, (explanation, sample) in enumerate(zip(found["explanations"], images.values(), strict=True)):
        of_image = shown[number * 16 : (number + 1) * 16]
        seen = pixels_of(source.fetch(np.array([sample]), None), trained.config.data)[0]
        np.testing.assert_array_equal(of_image[0][2], seen)
        for place, neighbour in enumerate(explanation["neighbours"]):
            plain, under, ram, query, qam = of_image[1 + 5 * place : 6 + 5 * place]
            pair = source.fetch(np.array([sample, neighbour["id"]]), None)
            f = trained.embedder.embed_images(pair)
            g = trained.embedder.map_images(pair)
            expected_qam, expected_ram = activation_maps(g, f, f[::-1])
            result = pixels_of(pair[1:], trained.config.data)[0]
            for image, expected in ((plain, result), (under, result), (query, seen)):
                np.testing.assert_array_equal(image[2], expected)
            for image, plane in ((ram, expected_ram), (qam, expected_qam)):
                assert image[0] == "map"
                if sample == neighbour["id"]:
                    assert not image[2][..., 3].any()
                else:
                    difference = image[2].astype(int) - np.asarray(tint(plane, 48)).astype(int)
                    assert np.abs(difference).max() <= 6
                    assert f"map, {range_text(plane, 48)}" in page.text
            assert neighbour["key"] in page.text
            if sample != neighbour["id"]:
                assert f"distance {neighbour['distance']:#.4g}" in page.text
    assert page.text.count("no difference between the two") == 1
    assert "0" in re.findall(r"distance (0|\d+\.\d+)", page.text)
    assert catalogue.num_samples == 48
    source.close()


def test_without_maps_any_network_is_explained(discs, runs, images, tmp_path):
    query = next(iter(images))
    answer(explain, runs / "a", query, "--out", tmp_path / "a", "--no-maps")
    page = Page((tmp_path / "a" / "index.html").read_text("utf-8"))
    assert len(list(pictures(page))) == 6
    assert "Activation maps" not in page.text
    mlp = ("backbone.name=mlp", "backbone.hidden=[8]")
    flat = train(discs, tmp_path / "mlp", backbone=mlp)
    assert "backbone.name=mlp, which has no feature maps" in refusal(
        explain, flat, query, "--out", tmp_path / "b"
    )
    assert not (tmp_path / "b").exists()
    answer(explain, flat, query, "--out", tmp_path / "b", "--no-maps")
    headed = train(discs, tmp_path / "headed", "backbone.embedding_dim=6")
    assert "explain(maps=False)" in refusal(explain, headed, query, "--out", tmp_path / "c")


@pytest.mark.parametrize(("metric", "measure"), [("inner_product", "product"), ("cosine", "cosine")])
def test_other_metrics_show_what_the_index_answers(discs, images, tmp_path, metric, measure):
    """The product of the two embeddings, or their cosine: not negated, the largest first."""
    query, run = next(iter(images)), train(discs, tmp_path / "run", f"index.metric={metric}")
    found = answer(explain, run, query, "--out", tmp_path / "d", "--no-maps")["explanations"][0]["neighbours"]
    trained = fsl_dist.open_run(run)
    own = trained.embed([query])[0].astype(float)
    vectors = trained.embed([n["id"] for n in found]).astype(float)
    if metric == "cosine":
        own = own / np.linalg.norm(own)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = [n["distance"] for n in found]
    assert shown == pytest.approx(vectors @ own, rel=1e-4)
    assert shown == sorted(shown, reverse=True)
    assert {n["measure"] for n in found} == {measure}
    page = Page((tmp_path / "d" / "index.html").read_text("utf-8"))
    assert all(f"{measure} {value:#.4g}" in page.text for value in shown)
    assert "largest first" in page.text
    assert "negated" not in page.text


def test_bad_images_are_named_and_bad_requests_refused(discs, runs, images, tmp_path):
    query = next(iter(images))
    (tmp_path / "text.png").write_text("no image")
    result = call(explain, runs / "a", tmp_path / "text.png", query, "--out", tmp_path / "why", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [failed["image"] for failed in report["failed"]] == [str(tmp_path / "text.png")]
    assert len(report["explanations"]) == 1
    assert "error: " in result.stderr
    nothing = call(explain, runs / "a", tmp_path / "none.png", "--out", tmp_path / "nothing", "--json")
    assert nothing.exit_code == 1
    assert json.loads(nothing.stdout)["page"] == ""
    assert not (tmp_path / "nothing").exists()
    lines = call(explain, runs / "a", query, query, "--out", tmp_path / "twice", "--k", 2).stdout.splitlines()
    assert len(lines) == 1 + 2 * 3
    assert (tmp_path / "twice" / "one-2.png").is_file()
    assert "is a file; explain writes a folder" in refusal(explain, runs / "a", query, "--out", query)
    assert "k=33 is more than the number of training images: 32" in refusal(
        explain, runs / "a", query, "--out", tmp_path / "k", "--k", 33
    )
    assert "is not a run folder" in refusal(explain, tmp_path / "nowhere", query, "--out", tmp_path / "k")
    catalogue = Catalogue.open(discs)
    np.save(tmp_path / "x.npy", np.zeros((catalogue.num_samples, 4), dtype=np.float32))
    mlp = ("backbone.name=mlp", "backbone.hidden=[8]")
    features = train(discs, tmp_path / "features", f"data.features={tmp_path / 'x.npy'}", backbone=mlp)
    assert "explain needs images" in refusal(explain, features, query, "--out", tmp_path / "k")
    told = refusal(plot, "retrieval", features, "--query", 0, "--out", tmp_path / "r.png")
    assert "the picture shows images" in told


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_become_their_pixels_again(channels):
    config = DataConfig(channels=channels, image_size=16, resize_size=16)
    pixels = torch.arange(256).repeat(channels, 1).T.reshape(1, 16, 16, channels).to(torch.uint8)
    images = Normaliser(config, "cpu")(pixels)
    np.testing.assert_array_equal(pixels_of(images, config), pixels.expand(-1, -1, -1, 3).numpy())


def test_an_overlay_is_grey_where_a_map_is_low_and_warm_where_it_is_high():
    pixels = np.full((8, 8, 3), (40, 200, 90), dtype=np.uint8)
    plane = np.zeros((2, 2))
    plane[0, 0] = 3.0
    found = np.asarray(overlay(pixels, plane)).astype(int)
    assert np.ptp(found[7, 7]) == 0
    red, green, blue = found[0, 0]
    assert min(red, green) > 150
    assert blue < green - 60
    nothing = np.asarray(overlay(pixels, np.full((2, 2), 5.0)))
    assert (np.ptp(nothing, axis=2) == 0).all()


def test_the_legend_has_the_colours_of_a_map_and_the_ends_of_its_scale_are_given():
    plane = np.array([[0.5, 0.5], [2.0, 2.0]])
    column = np.asarray(tint(plane, 128))[:, 0]
    scaled = (upsample(plane[None], 128)[0][:, 0] - 0.5) / 1.5
    of_legend = np.asarray(ramp())[0][np.round(scaled * 255).astype(int)].astype(int)
    assert np.abs(column - of_legend).max() <= 1  # the opacity's rounding
    assert range_text(plane, 128) == "0.5 … 2"


def test_one_query_over_systems(runs, discs, digits, tmp_path):
    catalogue = Catalogue.open(discs)
    sample = int(catalogue.select("train").ids[5])
    key, out = catalogue.keys([sample])[0], tmp_path / "r.png"
    found = answer(plot, "retrieval", runs / "a", runs / "b", "--query", key, "--out", out, "--k", 4)
    assert found["query"]["id"] == sample
    assert [system["name"] for system in found["systems"]] == ["a", "b"]
    for system in found["systems"]:
        expected = nearest(runs / system["name"], sample, 4, leave_out=True)
        assert [result["id"] for result in system["results"]] == [i for _, i in expected]
        assert system["distances"] == pytest.approx([d for d, _ in expected], rel=1e-4)
    first = out.read_bytes()
    answer(plot, "retrieval", runs / "a", runs / "b", "--query", sample, "--out", out, "--k", 4)
    assert out.read_bytes() == first
    assert "red <b>" in call(plot, "retrieval", runs / "a", "--query", 47, "--out", out).stdout
    frames = {tuple(pixel) for pixel in np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3).tolist()}
    assert frames & {(0, 114, 178), (230, 159, 0)}
    told = refusal(plot, "retrieval", runs / "a", "--query", "blue", "--out", out)
    assert "query=blue is neither a key of" in told
    assert "nor a sample id, 0 … 47" in told
    assert "nor a sample id" in refusal(plot, "retrieval", runs / "a", "--query", "48", "--out", out)
    other = train(digits, tmp_path / "digits")
    told = refusal(plot, "retrieval", runs / "a", other, "--query", "3", "--out", out)
    assert "are of different data sets or versions" in told
    assert "must end in .png" in refusal(plot, "retrieval", runs / "a", "--query", "3", "--out", "r.jpg")


def test_pairs_with_their_maps(runs, discs, tmp_path):
    out = tmp_path / "m.png"
    found = answer(plot, "maps", runs / "a", "--out", out, "--pairs", 5)
    test = Catalogue.open(discs).select("test").ids
    queries = [query["id"] for query, _ in found["pairs"]]
    assert queries == [int(test[place]) for place in (0, 3, 7, 11, 15)]
    for query, result in found["pairs"]:
        assert result["id"] == nearest(runs / "a", query["id"], 1)[0][1]
    with Image.open(out) as picture:
        size = picture.size
    assert "1 pairs" in call(plot, "maps", runs / "a", "--out", out, "--query", 40).stdout
    with Image.open(out) as picture:
        assert picture.size < size
    assert "is neither a key" in refusal(plot, "maps", runs / "a", "--out", out, "--query", "x")
