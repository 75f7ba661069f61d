"""The documentation site in a real browser: search, and every page at the width of a phone without an error."""

import functools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import CHROMIUM, FLAGS, run_browser

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))
from find_answers import QUESTIONS, Question, find_answers, render  # noqa: E402

pytest.importorskip("mkdocs", reason="MkDocs is not installed (pip install 'fsl-dist[docs]')")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)"),
]

# What a page loads from another host becomes an error on the console.
POLICY = "default-src 'self' 'unsafe-inline' data: blob:"
LOGGED = ("--enable-logging=stderr", "--v=0", "--dump-dom", "--virtual-time-budget=8000")
TOUR = """<!doctype html><body style="margin:0"><iframe style="border:0;width:400px;height:900px"></iframe><script>
const frame = document.querySelector("iframe"), found = {};
const opened = (page) => new Promise((resolve) => { frame.onload = resolve; frame.src = page; });
(async () => {
  for (const page of PAGES) {
    await opened(page);
    const seen = frame.contentDocument;
    const boxes = [...seen.querySelectorAll(".md-typeset__scrollwrap")];
    found[page] = {
      width: seen.documentElement.scrollWidth, heading: seen.querySelector("h1")?.textContent ?? "",
      pictures: [...seen.images].every((image) => image.complete && image.naturalWidth > 0),
      scrolls: boxes.some((box) => box.scrollWidth > box.clientWidth),
    };
  }
  fetch("/found", { method: "POST", body: JSON.stringify(found) });
})();</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    return folder


class Handler(SimpleHTTPRequestHandler):
    found: queue.Queue[dict] = queue.Queue()

    def do_POST(self) -> None:
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("resume", "how_to/"),
        ("FAISS filter", "explanation/neighbour_index.html"),
        ("DALI custom sampler", "reference/api/samplers.html"),
    ],
)
def test_search_finds_a_page_without_a_server(site: Path, tmp_path: Path, query: str, wanted: str) -> None:
    address = f"{(site / 'index.html').as_uri()}?q={query.replace(' ', '%20')}"
    browsed = run_browser(tmp_path, *LOGGED, "--window-size=1280,900", address)
    assert "CONSOLE" not in browsed.stderr
    links = re.findall(r'<a href="([^"]*)" class="md-search-result__link"', browsed.stdout)
    pages = list(dict.fromkeys(link.partition("/site/")[2].partition("?")[0] for link in links))
    assert any(page.startswith(wanted) for page in pages[:3]), pages


def tour(address: str, tmp: Path) -> tuple[dict, str]:
    """What the page at `address` posts, and the browser's log.

    It takes real time: all frames of a virtual clock would be drawn.
    """
    flags = [flag for flag in FLAGS if not flag.startswith("--virtual-time")]
    with (tmp / "log").open("w+") as log:
        command = [
            str(CHROMIUM),
            *flags,
            "--enable-logging=stderr",
            f"--user-data-dir={tmp / 'profile'}",
            address,
        ]
        browser = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            found = Handler.found.get(timeout=120)
        finally:
            os.killpg(browser.pid, signal.SIGTERM)
            browser.wait(20)
        log.seek(0)
        return found, log.read()


def test_every_page_opens_fits_a_phone_and_loads_nothing_from_elsewhere(
    site: Path, address: str, tmp_path: Path
) -> None:
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    (site / "tour.html").write_text(TOUR.replace("PAGES", json.dumps(pages)), "utf-8")
    found, log = tour(f"{address}/tour.html", tmp_path)
    assert set(found) == set(pages)
    assert {page: seen["width"] for page, seen in found.items() if seen["width"] > 400} == {}
    assert [page for page, seen in found.items() if not (seen["heading"] and seen["pictures"])] == []
    assert any(seen["scrolls"] for seen in found.values()), "wide tables scroll inside themselves"
    assert re.findall(r".*CONSOLE.*", log) == []


def test_an_error_and_a_request_to_another_host_would_be_seen(
    site: Path, address: str, tmp_path: Path
) -> None:
    broken = '<img src="https://example.org/a.png"><script>undefined.x</script></body>'
    text = (site / "index.html").read_text("utf-8").replace("</body>", broken)
    (site / "broken.html").write_text(text, "utf-8")
    log = run_browser(tmp_path, *LOGGED, f"{address}/broken.html").stderr
    (site / "broken.html").unlink()
    told = re.findall(r"CONSOLE.*", log)
    assert any("TypeError" in line for line in told)
    assert any("Content Security Policy" in line for line in told)


def test_a_stranger_finds_answers_from_the_front_page(site: Path) -> None:
    trails = find_answers(site)
    assert [trail.question for trail in trails if not trail.is_found] == []
    assert len(trails) == len(QUESTIONS) == 7
    assert {trail.question: trail.links for trail in trails if len(trail.links) > 2} == {}
    assert {trail.question: trail.seconds for trail in trails if trail.seconds > 60} == {}
    page = (ROOT / "docs" / "benchmarks" / "finding.md").read_text("utf-8")
    # Words and seconds follow each edit of a page; the links do not.
    for row in render(trails).splitlines():
        assert f"\n{row.rsplit(' | ', 2)[0]} | " in page, render(trails)


def test_a_stranger_gives_up_where_there_is_no_answer(site: Path) -> None:
    (trail,) = find_answers(site, [Question("How do I resume a cake?", "bake it longer")])
    assert not trail.is_found
    assert 1 <= len(trail.links) <= 4
    assert trail.num_words > 20
