"""The page of `fsl-dist explain` in a real browser: every image at its place, with its map's colours; text; narrow and dark."""

import base64
import io
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, HARNESS, browse, photograph
from PIL import Image

from fsl_dist import open_run
from fsl_dist.config import load_config
from fsl_dist.plots.explaining import ExplainReport
from fsl_dist.plots.map_overlay import DIMMING, range_text
from fsl_dist.training.launch import train_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)"),
]

# Sent to the page's embedder: where each of its images is, and how wide the page wants to be.
GEOMETRY = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: document.documentElement.scrollWidth,
  images: [...document.images].map((image) => { const box = image.getBoundingClientRect();
    return [image.className, image.src, box.left, box.top, box.width, box.height, image.naturalWidth]; })
}), "*"));</script>"""
# Of 255: what scaling by the browser rather than by PIL may change on average.
TOLERANCE = 6.0


@dataclass(frozen=True)
class Shown:
    """An image of the page as the browser has laid it out."""

    kind: str
    pixels: np.ndarray
    left: int
    top: int
    side: int


def lay_out(page: Path, tmp: Path, width: int, height: int) -> tuple[int, list[Shown]]:
    """(width the page wants, its images) in a window of `width` × `height` pixels."""
    text = page.read_text("utf-8")
    told = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", GEOMETRY + "</body>")
    (tmp / "told.html").write_text(told, "utf-8")
    (tmp / "harness.html").write_text(HARNESS.format(src="told.html", width=width, height=height), "utf-8")
    dom = browse(tmp, "--dump-dom", f"file://{tmp / 'harness.html'}")
    found = json.loads(re.search(r'data-told="([^"]*)"', dom)[1].replace("&quot;", '"').replace("&amp;", "&"))
    images = []
    for kind, source, left, top, wide, high, natural in found["images"]:
        assert natural > 0, "the browser could not decode an image"
        assert wide == pytest.approx(high, abs=0.6) or kind == "ramp"
        data = base64.b64decode(source.partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        images.append(Shown(kind, pixels, round(left), round(top), round(wide)))
    return found["width"], images


def difference(screen: np.ndarray, shown: Shown, expected: np.ndarray, resample: Image.Resampling) -> float:
    """Mean difference of levels between an image's place on the screen, without its edge, and what it should show."""
    inside = slice(4, shown.side - 4)
    place = screen[shown.top : shown.top + shown.side, shown.left : shown.left + shown.side][inside, inside]
    wanted = Image.fromarray(expected).resize((shown.side, shown.side), resample)
    return float(np.abs(place - np.asarray(wanted).astype(int)[inside, inside]).mean())


def under_map(photo: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A photo in dimmed grey under its map's colours, by the browser's arithmetic."""
    grey = photo @ np.array([0.2126, 0.7152, 0.0722]) * DIMMING
    share = colours[..., 3:] / 255
    return (grey[..., None] * (1 - share) + colours[..., :3] * share).astype(np.uint8)


@pytest.fixture(scope="module")
def run(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    settings = [
        f"data.dataset={discs}", f"run.dir={run}", "data.resize_size=36", "data.image_size=32", "training.epochs=0",
        "data.decoder=torchvision", "backbone.name=conv4", "backbone.width=12", "training.patience=0",
    ]  # fmt: skip
    train_run(load_config(None, settings))
    return run


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose quarters have colours that nothing else on the page has."""
    path = tmp_path_factory.mktemp("query") / "four quarters & more.png"
    quarters = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]], dtype=np.uint8)
    Image.fromarray(quarters.repeat(18, axis=0).repeat(18, axis=1)).save(path)
    return path


@pytest.fixture(scope="module")
def explained(run: Path, query: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExplainReport]:
    out = tmp_path_factory.mktemp("why")
    return out / "index.html", open_run(run).explain([query], out=out, k=4)


@pytest.mark.parametrize(("width", "height"), [(1200, 1500), (360, 2400)])
def test_every_image_is_drawn_at_its_place(
    explained: tuple[Path, ExplainReport], tmp_path: Path, width: int, height: int
) -> None:
    page, _ = explained
    wanted_width, images = lay_out(page, tmp_path, width, height)
    assert wanted_width <= width, "the page is wider than the window"
    screen = photograph(page, tmp_path, width, height)
    images = [shown for shown in images if shown.kind != "ramp"]
    assert len(images) == 1 + 4 * 5
    assert all(shown.left >= 0 and shown.left + shown.side <= width for shown in images)
    assert all(shown.top + shown.side <= height for shown in images)
    query, *of_results = images
    assert query.side == 256
    assert difference(screen, query, query.pixels, Image.Resampling.NEAREST) < TOLERANCE
    for number in range(4):
        plain, result, ram, again, qam = of_results[5 * number : 5 * number + 5]
        assert [shown.kind.split()[0] for shown in (plain, result, ram, again, qam)] == [
            "photo", "photo", "map", "photo", "map",
        ]  # fmt: skip
        assert plain.side >= 80
        assert difference(screen, plain, plain.pixels, Image.Resampling.NEAREST) < TOLERANCE
        for photo, colours in ((result, ram), (again, qam)):
            assert (photo.left, photo.top, photo.side) == (colours.left, colours.top, colours.side)
            large = [
                np.asarray(Image.fromarray(shown.pixels).resize((photo.side, photo.side), how))
                for shown, how in ((photo, Image.Resampling.NEAREST), (colours, Image.Resampling.BILINEAR))
            ]
            seen = under_map(*large)
            assert difference(screen, photo, seen, Image.Resampling.NEAREST) < TOLERANCE
            # It is the map that is seen, not the photo.
            assert difference(screen, photo, photo.pixels, Image.Resampling.NEAREST) > 3 * TOLERANCE


def near(screen: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(screen - colour) <= 12).all(axis=2)


def test_the_query_stands_upright_and_once_in_colour(
    explained: tuple[Path, ExplainReport], tmp_path: Path
) -> None:
    page, _ = explained
    screen = photograph(page, tmp_path, 1200, 1500)
    boxes = []
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)):
        rows, columns = np.nonzero(near(screen, colour))
        boxes.append((columns.min(), rows.min(), columns.max(), rows.max()))
        assert 110**2 < len(rows) < 135**2
        assert np.ptp(rows) < 135
        assert np.ptp(columns) < 135
    red, green, blue, yellow = boxes
    assert red[2] < green[0]
    assert red[3] < blue[1]
    assert blue[2] < yellow[0]
    assert green[3] < yellow[1]


def warm(screen: np.ndarray) -> int:
    """Pixels in the orange and yellow of a map's high places."""
    red, green, blue = np.moveaxis(screen, 2, 0)
    return int(((red > 150) & (green > 100) & (green < red + 30) & (blue < green - 60)).sum())


def test_without_maps_nothing_is_coloured(
    run: Path, query: Path, explained: tuple[Path, ExplainReport], tmp_path: Path
) -> None:
    open_run(run).explain([query], out=tmp_path / "plain", k=4, maps=False)
    plain = photograph(tmp_path / "plain" / "index.html", tmp_path, 1200, 1500)
    with_maps = photograph(explained[0], tmp_path, 1200, 1500)
    # The query's own yellow quarter is in both, the legend's ramp in one.
    assert warm(plain) < 135**2
    assert warm(with_maps) - warm(plain) > 10_000


class Text(HTMLParser):
    def __init__(self, dom: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(dom)

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def test_the_browser_reads_the_text(explained: tuple[Path, ExplainReport], tmp_path: Path) -> None:
    page, report = explained
    dom = browse(tmp_path, "--dump-dom", page.as_uri())
    text = " ".join(Text(dom).words)
    assert "four quarters & more.png" in text
    (explanation,) = report.explanations
    answer = explanation.votes[0]
    assert f"{answer.name} by {answer.count} of 4 votes" in text
    for rank, neighbour in enumerate(explanation.neighbours, 1):
        head = f"{rank} {neighbour.label} group {neighbour.group} training image"
        result = explanation.evidence.results[rank - 1]
        ram, qam = (range_text(plane, 32) for plane in (result.result_map, result.query_map))
        ending = f"distance {neighbour.distance:#.4g} {neighbour.key}"
        assert f"{head} its map, {ram} your image's map, {qam} {ending}" in text
    assert "only 2 × 2 places. The maps have 4 × 4 values, from the earlier layer 3.2" in text


@pytest.mark.parametrize(("scheme", "paper"), [(1, (246, 246, 244)), (0, (21, 23, 26))])
def test_it_follows_the_systems_colours(
    explained: tuple[Path, ExplainReport], tmp_path: Path, scheme: int, paper: tuple[int, int, int]
) -> None:
    screen = photograph(explained[0], tmp_path, 800, 600, f"--blink-settings=preferredColorScheme={scheme}")
    assert np.abs(screen[3, 3] - paper).max() <= 1
