"""The page Correct in a real browser: from a planted wrong label to a new version of the data set."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import CHROMIUM
from commands import call
from live_browser import LivePage
from PIL import Image, ImageDraw

import fsl_dist
from cluster.commands.catalogue import resplit
from cluster.view.server import ViewServer
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.viewing.corrections import COLUMNS, Correction, Corrections
from fsl_dist.viewing.curating import find_suspicions

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")

COLOURS = {"blue": (60, 90, 230), "red <b>": (220, 60, 40), "green": (40, 190, 70)}
WRONG, COPY = "blue-3", "copy"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on discs of three colours: one blue training disc is labelled red, one red training disc is in test too, and a
    fourth class has two training images."""
    source, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    rows = ["file,class,split"]
    for name, colour in COLOURS.items():
        for number in range(24):
            file = f"{name[:5].split()[0]}-{number}.png"
            image = Image.fromarray(rng.integers(0, 40, (48, 48, 3), dtype=np.uint8))
            x, y, radius = (int(value) for value in rng.integers([14, 14, 8], [34, 34, 14]))
            ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), colour)
            image.save(source / file)
            label = "red <b>" if file == f"{WRONG}.png" else name
            rows.append(f"{file},{label},{'train' if number < 20 else 'test'}")
    shutil.copy(source / "red-5.png", source / f"{COPY}.png")
    rows.append(f"{COPY}.png,red <b>,test")
    for number in range(2):
        Image.new("RGB", (48, 48), (200, 200, 20 + number)).save(source / f"thin-{number}.png")
        rows.append(f"thin-{number}.png,thin,train")
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("packed") / "discs"
    data = fsl_dist.pack(source, out, table=source / "labels.csv", split_column="split", progress=False)
    settings = {
        "data.resize_size": 32, "data.image_size": 32, "data.decoder": "torchvision", "backbone.name": "conv4",
        "backbone.width": 16, "training.epochs": 0, "training.patience": 0,
    }  # fmt: skip
    return fsl_dist.train(data=data, dir=out.parent / "run", settings=settings, progress=False).dir


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewServer]:
    with ViewServer([run], corrections=tmp_path_factory.mktemp("out") / "corrections.csv") as server:
        httpx.get(f"{server.url}/correct")
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePage]:
    with LivePage(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(server: ViewServer, browser: LivePage) -> Iterator[LivePage]:
    browser.clear()
    browser.open(f"{server.url}/correct")
    browser.wait("document.querySelector('.items')")
    yield browser
    assert browser.complaints == []


def test_the_planted_errors_are_in_the_lists(run: Path) -> None:
    data = fsl_dist.open_run(run).data
    found = find_suspicions(run, seconds=60)
    assert found.left_out == ()
    first = found.items["label"][0]
    assert data.keys([first.sample]) == [WRONG]
    assert first.suggested == "blue"
    (pair,) = found.items["duplicate"]
    assert data.keys([pair.sample, pair.partner]) == [COPY, "red-5"]
    assert pair.reason == "The same file is in train."
    assert {data.keys([one.sample])[0] for one in found.items["thin"]} == {"thin-0", "thin-1"}
    assert found.items["thin"][0].reason == "thin has only 2 training images."


def test_a_wrong_label_becomes_a_new_version_of_the_data_set(
    page: LivePage, server: ViewServer, run: Path, tmp_path: Path
) -> None:
    assert WRONG in page.text(".item")
    page.run("document.querySelector('.item').focus()")
    page.press("a", code=65, text="a")
    page.wait("document.querySelector('.decision').innerText === 'red <b> → blue'")
    page.open(f"{server.url}/correct?list=duplicate")
    page.run("document.querySelector('.item').focus()")
    page.press("x", code=88, text="x")
    page.wait("document.querySelector('.decision').innerText === 'Left out'")
    command = page.text("pre")
    dataset = tmp_path / "copy-of-discs"
    before = fsl_dist.open_run(run).data
    shutil.copytree(before.folder, dataset)
    arguments = command.removeprefix("fsl-dist resplit DATASET ").split()
    result = call(resplit, dataset, *arguments, "--json", "--allow-bad")
    assert result.exit_code == 0, result.output
    after = Catalogue.open(dataset)
    labels = {
        catalogue.version: dict(
            zip(
                catalogue.keys(range(len(catalogue))),
                map(catalogue.label_name, catalogue.labels),
                strict=True,
            )
        )
        for catalogue in (before, after)
    }
    assert after.version == before.version + 1
    assert labels[2] == {key: name for key, name in labels[1].items() if key != COPY} | {WRONG: "blue"}
    page.open(f"{server.url}/correct")
    assert page.text(".item .decision") == "red <b> → blue", "a decision is shown again"


def test_every_decision_can_be_made_with_the_mouse(page: LivePage, server: ViewServer) -> None:
    page.open(f"{server.url}/correct?list=thin")
    page.click(".item [data-decision=keep]")
    page.wait("document.querySelector('.decision').innerText === 'Label kept'")
    page.run("document.querySelectorAll('.item')[1].querySelector('input').value = 'green'")
    page.click(".item:nth-child(2) form button")
    page.wait("document.querySelectorAll('.decision')[1].innerText === 'thin → green'")
    page.run("document.querySelectorAll('.item')[1].querySelector('input').value = 'greem'")
    page.click(".item:nth-child(2) form button")
    page.wait("!document.querySelector('#problem').hidden")
    assert page.text("#problem") == "class 'greem' is not in the data set; did you mean 'green'?"
    page.events.clear()  # the browser logs the refusal's status


def test_it_fits_a_phone(page: LivePage) -> None:
    page.resize(400, 900, is_dark=True)
    assert page.run("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"sample": 10**6, "list": "label", "decision": "keep"}, "sample 1000000 is unknown"),
        ({"sample": 1, "list": "label", "decision": "accept", "label": ""}, "needs a label"),
        ({"sample": 1, "list": "label", "decision": "correct", "label": "=cmd()"}, "is not in the data set"),
        ({"sample": 1, "list": "other", "decision": "keep"}, "list: Input should be"),
    ],
)
def test_bad_decisions_are_refused_in_a_line(server: ViewServer, body: dict, line: str) -> None:
    response = httpx.post(f"{server.url}/corrections", json=body)
    assert response.status_code in (404, 422)
    assert line in response.json()["error"]


def test_another_site_cannot_decide(server: ViewServer) -> None:
    body = {"sample": 1, "list": "label", "decision": "leave_out"}
    response = httpx.post(f"{server.url}/corrections", json=body, headers={"Origin": "http://evil.example"})
    assert response.status_code == 403


def test_the_table_is_appended_to_and_the_last_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "corrections.csv"
    table = Corrections(path)
    table.append(Correction('a,"b"', "x", "y", "accept", "label"))
    table.append(Correction('a,"b"', "y", "y", "keep", "label"))
    with path.open("a") as file:
        file.write("cut off")  # by a full disk
    again = Corrections(path)
    assert again.last['a,"b"'].label == "y"
    again.append(Correction("c", "", "y", "leave_out", "duplicate"))
    rows = list(csv.reader(path.read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [row[0] for row in rows[1:]] == ['a,"b"', 'a,"b"', "cut off", "c"]
    (tmp_path / "other.csv").write_text("file,class\n")
    with pytest.raises(fsl_dist.RequestError, match="is not a table of corrections"):
        Corrections(tmp_path / "other.csv")
