"""The report on a fit in a real browser: no error, nothing wider than the window, names as they are, pictures that decode."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, HARNESS, browse, photograph, run_browser
from PIL import Image
from sklearn.datasets import load_digits

from fsl_dist import open_run, pack
from fsl_dist.config import load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import Embedded, fit_head
from fsl_dist.plots.fit_report.inputs import Candidate, Difference, FitFacts, Overview, Score
from fsl_dist.plots.fit_report.measuring import Chosen, measure_fit
from fsl_dist.plots.fit_report.page import write_fit_report
from fsl_dist.training.launch import train_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")

NAMES = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(2)>", 'quote " and &amp;', "ספרה", "a" * 150,
    "five", "six", "seven", "eight", "nine",
]  # fmt: skip
# Of the class's training images, the first five digits have fewer.
TRAIN = [6, 8, 10, 12, 16, 20, 24, 26, 28, 30]
MISLABELLED = (7, 3)
LOGGED = ("--enable-logging=stderr", "--v=0", "--dump-dom")
LAYOUT = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: document.documentElement.scrollWidth, images: [...document.images].map((image) => image.naturalWidth),
  boxes: [...document.querySelectorAll(".wide")].map((box) => [box.scrollWidth > box.clientWidth, box.tabIndex]),
  text: Math.min(...[...document.querySelectorAll("svg")].filter((svg) => svg.clientWidth).map((svg) =>
    12 * svg.clientWidth / svg.viewBox.baseVal.width)),
}), "*"));</script>"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Digits with hostile names; two copies, one of another class in another split, and two training images of a wrong class."""
    scans, source = load_digits(), tmp_path_factory.mktemp("digits")
    rows = [["file", "class", "split"]]
    for digit, name in enumerate(NAMES):
        members = np.flatnonzero(scans.target == digit)[: TRAIN[digit] + 14]
        for position, member in enumerate(members.tolist()):
            split = "train" if position < TRAIN[digit] else "val" if position < TRAIN[digit] + 4 else "test"
            Image.fromarray((scans.images[member] * (255 / 16)).astype(np.uint8)).save(
                source / f"{member}.png"
            )
            is_wrong = digit == MISLABELLED[0] and position in (4, 9)
            rows.append([f"{member}.png", NAMES[MISLABELLED[1]] if is_wrong else name, split])
    first = next(row for row in rows[1:] if row[1] == "six")
    (source / "copy.png").write_bytes((source / first[0]).read_bytes())
    rows.append(["copy.png", "nine", "test"])
    with (source / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    out = tmp_path_factory.mktemp("packed") / "digits"
    return pack(source, out, table=source / "labels.csv", split_column="split", progress=False)


def pixels_of(data: Catalogue, *splits: str) -> Embedded:
    """The images' 64 pixels as embeddings."""
    from fsl_dist.data.pixels import open_upright
    from fsl_dist.data.store import ShardStore

    ids = np.concatenate([np.asarray(data.split_ids(split)) for split in splits])
    store = ShardStore(data)
    vectors = np.stack([np.asarray(open_upright(one))[..., 0].ravel() for one in store.read(ids)])
    store.close()
    return Embedded(ids, vectors.astype(np.float32), data.labels[ids])


@pytest.fixture(scope="module")
def facts(data: Catalogue) -> FitFacts:
    train, test = pixels_of(data, "train"), pixels_of(data, "test")
    head = fit_head(HeadConfig(kind="logistic", c=0.01), train, np.unique(train.labels)).with_temperature(0.5)
    score = Score(n=len(test.ids), acc=0.9, mcr=0.89, acc_interval=(0.85, 0.94), mcr_interval=(0.83, 0.93))
    overview = Overview(
        dataset="digits <b>",
        candidates=(
            Candidate(name="frozen", head="knn", validation=score, test=score, is_frozen=True, round=0),
            Candidate(
                name="pixels <i>", head=head.config.name, validation=score, test=score, images_seen=12_000, seconds=30.5,
                round=1, note="a note that says <why>",
            ),
        ),
        chosen="pixels <i>",
        differences=(
            Difference(
                against="frozen", images="test", acc=0.05, acc_interval=(0.01, 0.09), mcr=0.06, mcr_interval=(0.02, 0.1)
            ),
        ),
        budget_s=60,
        spent_s={"pack": 2.0, "round 1": 30.5},
        warnings=("a warning",),
        commands=("fsl-dist predict OUT IMAGE",),
    )  # fmt: skip
    chosen = Chosen(head=head, train=train, scored=test, split="test")
    return measure_fit(overview, data, chosen, frozen=pixels_of(data, "train", "val"), seconds=60)


@pytest.fixture(scope="module")
def page(facts: FitFacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fit_report(tmp_path_factory.mktemp("fit"), facts)


class Text(HTMLParser):
    def __init__(self, dom: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data.split()


@pytest.mark.parametrize("width", [1200, 400])
def test_it_fits_the_window_and_all_pictures_decode(page: Path, tmp_path: Path, width: int) -> None:
    text = page.read_text("utf-8")
    told = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", LAYOUT + "</body>")
    (tmp_path / "told.html").write_text(told, "utf-8")
    (tmp_path / "harness.html").write_text(HARNESS.format(src="told.html", width=width, height=900), "utf-8")
    dom = browse(tmp_path, "--dump-dom", f"file://{tmp_path / 'harness.html'}")
    found = json.loads(re.search(r'data-told="([^"]*)"', dom)[1].replace("&quot;", '"'))
    assert found["width"] <= width, "the page scrolls sideways"
    assert len(found["images"]) > 20
    assert min(found["images"]) > 0, "the browser could not decode a picture"
    assert all(index == 0 for _, index in found["boxes"]), "a box that scrolls is reached from the keyboard"
    if width == 400:
        assert any(scrolls for scrolls, _ in found["boxes"]), "wide tables scroll in their boxes"
    assert found["text"] > 10.5, "the charts' words are too small"


def test_the_console_is_silent(page: Path, tmp_path: Path) -> None:
    assert "CONSOLE" not in run_browser(tmp_path, *LOGGED, "--window-size=500,900", page.as_uri()).stderr
    # The same question about a page that breaks its own policy is answered.
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text("utf-8").replace("</body>", "<script>1</script></body>"), "utf-8")
    assert "CONSOLE" in run_browser(tmp_path, *LOGGED, broken.as_uri()).stderr


def test_names_are_text_and_every_part_is_there(page: Path, facts: FitFacts, tmp_path: Path) -> None:
    browsed = run_browser(tmp_path, *LOGGED, "--window-size=1200,900", page.as_uri())
    assert "CONSOLE" not in browsed.stderr
    parsed = Text(browsed.stdout)
    text = " ".join(parsed.words)
    assert "script" not in parsed.tags
    assert parsed.tags.count("b") == 0
    for name in NAMES:
        assert " ".join(name.split()) in text
    assert (
        "The best model is pixels <i> with logistic c=0.01: 90.0 % accuracy (95 % interval 85.0 to 94.0)"
        in text
    )
    assert "The frozen network is 5.0 points lower in accuracy (1.0 to 9.0)" in text
    assert "a note that says <why>" in text
    for title in (
        "The data", "Confusion on the test images", "Recall of each class and its size", "Can its confidence be trusted?",
        "Evidence for mistakes", "Likely label errors", "What to do next", "Use the model",
    ):  # fmt: skip
        assert title in text
    assert not facts.left_out


def test_what_was_planted_is_found(data: Catalogue, facts: FitFacts, page: Path) -> None:
    (pair,) = facts.data.copies
    assert [data.label_name(int(data.labels[sample])) for sample in (pair.first, pair.second)] == [
        "six",
        "nine",
    ]
    assert facts.data.near is not None
    assert facts.data.num_near[1] >= 1
    assert facts.labels is not None
    planted = [(NAMES[MISLABELLED[1]], NAMES[MISLABELLED[0]])] * 2
    found = [(data.label_name(one.label), data.label_name(one.suggested)) for one in facts.labels.errors]
    assert [pair for pair in found if pair == planted[0]] == planted
    with (page.parent / "label_errors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == data.num_samples
    assert [(row["label"], row["suggested"]) for row in rows if row["label"] != row["suggested"]] == found


def test_without_time_the_cheap_parts_remain(facts: FitFacts, data: Catalogue, tmp_path: Path) -> None:
    train, test = pixels_of(data, "train"), pixels_of(data, "test")
    head = fit_head(HeadConfig(kind="knn"), train, np.unique(train.labels))
    chosen = Chosen(head=head, train=train, scored=test, split="test")
    short = measure_fit(facts.overview, data, chosen, frozen=train, seconds=0.0)
    assert short.judged is not None
    assert short.mistakes is not None
    assert short.labels is short.next is short.data.near is None
    assert len(short.left_out) == 3
    text = write_fit_report(tmp_path, short).read_text("utf-8")
    assert "Near-duplicates: no time was left (time limit: 0 s)." in text
    assert not (tmp_path / "label_errors.csv").exists()


def test_it_is_dark_where_the_system_is(page: Path, tmp_path: Path) -> None:
    screen = photograph(page, tmp_path, 800, 600, "--blink-settings=preferredColorScheme=0")
    assert np.median(screen) < 60


def test_a_run_that_was_trained_by_hand_has_a_report(digits: Path, tmp_path: Path) -> None:
    settings = [
        f"data.dataset={digits}", f"run.dir={tmp_path / 'run'}", "data.resize_size=16", "data.image_size=16",
        "training.epochs=1", "data.decoder=torchvision", "backbone.name=conv4", "backbone.width=8",
        "method.kind=cross_entropy",
    ]  # fmt: skip
    train_run(load_config(None, settings))
    with open_run(tmp_path / "run") as run:
        written = run.report(tmp_path / "report", seconds=4)
    text = written.read_text("utf-8")
    assert "The best model is run with softmax" in text
    assert "The frozen network" in text
    assert "Likely label errors" in text
