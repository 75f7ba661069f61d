"""`fsl-dist view` in a real browser: an image is dropped, the answer and its evidence are on the page."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import CHROMIUM
from live_browser import LivePage
from PIL import Image, ImageDraw

import fsl_dist
from cluster.view.server import ViewServer
from fsl_dist.data.catalogue import Catalogue

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")

CLASSES = {"blue": (60, 90, 230), "red <b>": (220, 60, 40), "<img src=x onerror=alert(1)>": (40, 190, 70)}
SETTINGS = {
    "data.resize_size": 36, "data.image_size": 32, "data.decoder": "torchvision", "backbone.name": "conv4",
    "training.epochs": 0, "training.patience": 0,
}  # fmt: skip


def draw(colour: tuple[int, int, int], radius: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    x, y = (int(place) for place in rng.integers(radius, [48 - radius, 40 - radius]))
    image = Image.fromarray(rng.integers(0, 40, (40, 48, 3), dtype=np.uint8))
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    return image


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Discs of three colours, with hostile names: 10 training, 8 validation and 4 test images of each size."""
    source = tmp_path_factory.mktemp("source")
    rows = ["file,class,group,split"]
    for label, (name, colour) in enumerate(CLASSES.items()):
        for group, radius in (("small", 6), ("large", 13)):
            for number in range(22):
                file = f"{label}-{group}-{number}.png"
                draw(colour, radius, 100 * label + 30 * radius + number).save(source / file)
                split = "train" if number < 10 else "val" if number < 18 else "test"
                rows.append(f"{file},{name},{group} <i>{label}</i>,{split}")
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("packed") / "discs"
    table = source / "labels.csv"
    return fsl_dist.pack(source, out, table=table, group_column="group", split_column="split", progress=False)


@pytest.fixture(scope="module")
def runs(data: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, width in (("narrow", 12), ("wide", 20)):
        settings = {**SETTINGS, "backbone.width": width}
        fsl_dist.train(data=data, dir=folder / name, settings=settings, progress=False)
    return [folder / "narrow", folder / "wide"]


@pytest.fixture(scope="module")
def server(runs: list[Path]) -> Iterator[ViewServer]:
    with ViewServer(runs[:1]) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePage]:
    with LivePage(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(server: ViewServer, browser: LivePage) -> Iterator[LivePage]:
    browser.clear()
    browser.open(server.url)
    yield browser
    assert browser.complaints == []


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "a red disc.png"
    draw(CLASSES["red <b>"], 9, 7).save(path)
    return path


def is_answered(page: LivePage) -> None:
    page.wait("document.querySelector('.answer') && document.querySelector('#answers').ariaBusy === 'false'")
    page.wait("[...document.images].every((image) => image.complete)")


def test_an_image_file_is_answered_with_neighbours_and_maps(
    page: LivePage, server: ViewServer, runs: list[Path], red: Path
) -> None:
    page.choose_files("#file", red)
    is_answered(page)
    page.wait("document.querySelectorAll('.map').length === 20")
    predicted = fsl_dist.open_run(runs[0]).predict([red])[0]
    explained = fsl_dist.open_run(runs[0]).explain([red], k=10)[0]
    assert page.text(".verdict").startswith(f"{predicted.classes[0].name}, ")
    cards = page.run("[...document.querySelectorAll('.neighbours > li')].map((card) => card.innerText)")
    assert len(cards) == 10
    for card, neighbour in zip(cards, explained.neighbours, strict=True):
        assert neighbour.label in card
        assert neighbour.group in card
        assert neighbour.key in card
        assert f"distance {neighbour.distance:#.4g}" in card
        assert re.search(r"map [\d.e-]+ … [\d.e-]+", card)
    assert "last feature map has only 2 × 2 places" in page.text(".mapnote")
    assert page.run("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.run("document.querySelectorAll('.answer b, .answer i, .answer img[src=x]').length") == 0


def test_the_slider_changes_the_strength_of_the_maps(page: LivePage, red: Path) -> None:
    page.choose_files("#file", red)
    page.wait("document.querySelectorAll('.map').length === 20")
    assert page.run("getComputedStyle(document.querySelector('.map')).opacity") == "1"
    page.run("document.querySelector('.strength').focus()")
    page.press("Home", code=36)
    assert page.run("getComputedStyle(document.querySelector('.map')).opacity") == "0"
    assert page.run("getComputedStyle(document.querySelector('.mapped img')).filter") == "none"


def test_a_neighbour_is_asked_about_and_back_returns(page: LivePage, data: Catalogue, red: Path) -> None:
    page.choose_files("#file", red)
    is_answered(page)
    first = int(page.run("document.querySelector('.neighbours .next').dataset.sample"))
    page.click(".neighbours .next")
    page.wait("document.querySelector('.answer .muted').innerText.includes('labelled')")
    is_answered(page)
    (key,) = data.keys([first])
    assert key in page.text(".answer")
    others = page.run("[...document.querySelectorAll('.neighbours > li')].map((card) => card.dataset.sample)")
    assert str(first) not in others, "an image is not its own neighbour"
    page.click(".neighbours .next")
    page.wait(f"!location.hash.endsWith('={first}')")
    is_answered(page)
    page.run("history.back()")
    page.wait(f"location.hash === '#sample={first}'")
    page.wait(f"document.querySelector('.answer .muted').innerText.includes({json.dumps(key)})")


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("class_name", "blue", lambda data, one: data.label_name(int(data.labels[one])) == "blue"),
        ("group_name", "small <i>2</i>", lambda data, one: data.group_names[data.groups[one]] == "small <i>2</i>"),
        ("split", "test", lambda data, one: data.splits[one] == 2),
    ],
)  # fmt: skip
def test_neighbours_are_filtered(page: LivePage, data: Catalogue, red: Path, field, value, wanted) -> None:
    page.choose_files("#file", red)
    is_answered(page)
    page.run(f"document.querySelector('#{field}').value = {json.dumps(value)}")
    page.click("#again")
    page.wait("document.querySelector('#state').innerText.startsWith('Answer')")
    is_answered(page)
    found = page.run(
        "[...document.querySelectorAll('.neighbours > li')].map((card) => Number(card.dataset.sample))"
    )
    assert len(found) >= 8
    assert all(wanted(data, sample) for sample in found)


def test_a_test_image_is_chosen_with_the_keyboard_alone(page: LivePage, data: Catalogue) -> None:
    page.run("document.querySelector('#chooser summary').focus()")
    page.press("Enter", code=13, text="\r")
    page.wait("document.querySelectorAll('#samples .next').length === 24")
    page.run("document.querySelector('#samples .next').focus()")
    page.press("Enter", code=13, text="\r")
    is_answered(page)
    sample = data.split_ids("test")[0]
    assert data.keys([sample])[0] in page.text(".answer")
    assert data.label_name(int(data.labels[sample])) in page.text(".answer")


def test_a_file_that_is_no_image_is_refused_in_a_line(page: LivePage, tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html><script>alert(1)</script></html>")
    page.choose_files("#file", path)
    page.wait("!document.querySelector('#problem').hidden")
    assert page.text("#problem") == "the image is not an image that decodes: its format is unknown"
    page.events.clear()  # the browser logs the refusal's status


def test_it_fits_a_phone_and_follows_the_colour_scheme(page: LivePage, red: Path) -> None:
    page.choose_files("#file", red)
    page.wait("document.querySelectorAll('.map').length === 20")
    light = page.run("getComputedStyle(document.body).backgroundColor")
    for is_dark in (False, True):
        page.resize(400, 900, is_dark=is_dark)
        assert page.run("document.documentElement.scrollWidth") <= 400
    assert page.run("getComputedStyle(document.body).backgroundColor") != light


def test_two_runs_answer_next_to_each_other(runs: list[Path], browser: LivePage, red: Path) -> None:
    page = browser
    page.clear()
    with ViewServer(runs) as server:
        page.open(server.url)
        page.choose_files("#file", red)
        is_answered(page)
        names = page.run(
            "[...document.querySelectorAll('.answer .muted:first-child')].map((one) => one.innerText)"
        )
        assert [name.strip() for name in names][:2] == ["narrow", "wide"]
        assert page.complaints == []


def test_a_new_class_is_added_by_five_images(page: LivePage, tmp_path: Path) -> None:
    files = [tmp_path / f"white {number}.png" for number in range(6)]
    for number, file in enumerate(files):
        draw((250, 250, 250), 11, 900 + number).save(file)
    page.choose_files("#file", files[5])
    is_answered(page)
    assert "white <u>" not in page.text(".ranking")
    page.click("#novel summary")
    page.run("document.querySelector('#name').value = 'white <u>'")
    page.choose_files("#support", *files[:5])
    page.click("#add button")
    page.wait("document.querySelector('.ranking').innerText.includes('white <u>')")
    assert page.text(".verdict").startswith("white <u>, ")
    assert "white <u>: 5 images" in page.text("#classes")
    page.click("#classes button")
    page.wait("!document.querySelector('.ranking').innerText.includes('white <u>')")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_json_answer_has_what_the_page_shows(server: ViewServer, red: Path) -> None:
    reply = httpx.post(f"{server.url}/ask?k=3", content=red.read_bytes()).json()
    assert reply["classes"][0]["score"] <= 1
    assert reply["is_calibrated"] is True
    assert reply["judgement"]["is_unlike"] is False
    assert [sorted(one) for one in reply["neighbours"]] == [["distance", "sample"]] * 3
    pixels = Image.open(io.BytesIO(base64.b64decode(reply["picture"].partition(",")[2])))
    assert pixels.size == (32, 32)
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert {"/ask", "/maps", "/samples", "/novel", "/samples/{sample}/answer"} <= set(described["paths"])


def test_an_image_of_something_else_is_unlike_anything_seen(server: ViewServer) -> None:
    stripes = np.zeros((40, 48, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    reply = httpx.post(f"{server.url}/ask", content=png(Image.fromarray(stripes))).json()
    assert reply["judgement"] == {"is_unlike": True, "share_nearer": 1.0}


def bomb() -> bytes:
    """A PNG of a few kB that declares 60,000 × 60,000 pixels."""
    data = bytearray(png(Image.new("1", (600, 600))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "zero bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "format is unknown"),
        (b"GIF89a/*<script>*/=1;alert(1)", "not an image that decodes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (bomb(), "declares 60000 × 60000 pixels, more than the 50000000 allowed"),
        (png(Image.new("RGB", (300, 300), "red"))[:-200], "ends before its last pixel"),
        (b"\xff\xd8\xff\xe0" + bytes(2000), "not an image that decodes"),
        (b"/etc/passwd", "format is unknown"),
        (bytes(21 << 20), "larger than max_body_mb=20"),
    ],
    ids=["empty", "svg", "gif-script", "eps", "bomb", "cut", "jpeg-noise", "path", "large"],
)  # fmt: skip
@pytest.mark.parametrize("route", ["ask", "maps?ids=1", "novel?name=x"])
def test_hostile_uploads_are_refused_in_a_line(
    server: ViewServer, route: str, content: bytes, line: str
) -> None:
    response = httpx.post(f"{server.url}/{route}", content=content)
    assert response.status_code in (413, 422)
    error = response.json()["error"]
    assert line in error
    assert "\n" not in error
    assert len(error) <= 620
    assert httpx.get(f"{server.url}/novel").json() == []


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("samples/99999/answer", 404), ("samples/-1/image", 404), ("samples/..%2f..%2fetc%2fpasswd/image", 404),
        ("static/../application.py", 404), ("static/%2e%2e/application.py", 404), ("samples?split=all", 422),
        ("samples/1/maps?ids=1,x", 422), ("samples/1/answer?run=3", 404), ("samples/1/answer?k=101", 422),
        ("samples/1/answer?class_name=bleu", 422), ("docs", 404),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_a_line(server: ViewServer, route: str, status: int) -> None:
    response = httpx.get(f"{server.url}/{route}")
    assert response.status_code == status
    assert set(response.json()) == {"error"}


def test_other_sites_cannot_ask(server: ViewServer) -> None:
    ask = {"url": f"{server.url}/ask", "content": png(draw((0, 0, 255), 9, 1))}
    assert httpx.post(**ask, headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.post(**ask, headers={"Origin": "null"}).status_code == 403
    assert httpx.post(**ask, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert httpx.get(server.url, headers={"Host": "evil.example"}).status_code == 403
    assert httpx.post(**ask, headers={"Origin": server.url}).status_code == 200


def test_every_answer_has_a_content_security_policy(server: ViewServer) -> None:
    for route in ("", "static/ask.js", "samples/1/image", "samples/1/answer", "nowhere"):
        headers = httpx.get(f"{server.url}/{route}").headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def test_a_token_is_needed_where_one_is_set(
    runs: list[Path], browser: LivePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "a-token-of-24-characters"
    monkeypatch.setenv("VIEW_TOKEN", token)
    with ViewServer(runs[:1], token_env="VIEW_TOKEN") as server:
        assert httpx.get(f"{server.url}/samples").status_code == 401
        own = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{server.url}/samples", headers=own).status_code == 200
        assert httpx.get(f"{server.url}/samples", headers={"Cookie": "fsl_dist_view=x"}).status_code == 401
        browser.open(server.url)
        assert browser.run("location.pathname") == "/login"
        for typed, then in (("wrong", "[role=alert]"), (token, "#drop")):
            browser.run(f"document.querySelector('#token').value = {json.dumps(typed)}")
            browser.click("button")
            browser.wait(f"document.querySelector('{then}') && document.readyState === 'complete'")
        assert browser.text("h1") == "Ask narrow"


def test_addresses_that_others_reach_need_a_token(runs: list[Path]) -> None:
    with pytest.raises(fsl_dist.RequestError, match="there is no token"):
        ViewServer(runs[:1], host="0.0.0.0")
