"""Measures how quickly a reader finds answers from the front page of the site, in Chromium.

    make docs && python docs/find_answers.py [SITE]

A program takes the part of a reader who has never seen the project. It knows the words of a question, and reads the
front page from its top. If the answer is not there, it clicks the link that shares most words with the question,
counting the words of the link's row in a table, and reads that page. It stops at the answer. Prints the table of
docs/benchmarks/finding.md: the links, and the time of a careful reader, who skips nothing.
"""

import argparse
import functools
import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from generated import find_browser

WORDS_PER_S = 4.0
"""a careful reader's speed, 240 words per minute; people who skim are faster"""
CLICK_S = 2.0
"""for a click and the new page"""
MOST_CLICKS = 4
_TIMEOUT_S = 120
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


@dataclass(frozen=True, slots=True)
class Question:
    """What a reader wants to know."""

    text: str
    answer: str
    """regular expression for the text that answers it"""


QUESTIONS = (
    Question("How do I train on a folder?", r"fsl-dist fit my_images"),
    Question("What is deep kNN?", r"the vote of nearest neighbours is right"),
    Question("Where are the checkpoints?", r"run\.dir/checkpoints"),
    Question("How do I resume a run?", r"fsl-dist train --resume run\.dir="),
    Question("How do I add a backbone?", r"backbone\.name=timm:"),
    Question("What can I do about CUDA out of memory?", r"training\.chunk_size=32"),
    Question("How do I filter a search?", r"same_class="),
)


@dataclass(frozen=True, slots=True)
class Trail:
    """How the answer of a question was found."""

    question: str
    links: Sequence[str]
    """texts of the links that were clicked, from the front page on"""
    num_words: int
    """words read, from the top of each page to the link or to the answer"""
    is_found: bool

    @property
    def seconds(self) -> float:
        """Time of a careful reader."""
        return self.num_words / WORDS_PER_S + CLICK_S * len(self.links)


READER = """<!doctype html><iframe style="border:0;width:1280px;height:900px"></iframe><script>
const frame = document.querySelector("iframe");
const load = (start) => new Promise((done) => { frame.onload = () => done(frame.contentDocument); start(); });
const count = (text) => text.split(/\\s+/).filter(Boolean).length;
const known = (text, words) => words.filter((word) => text.toLowerCase().includes(word)).length;
async function find({words, answer}) {
  let page = await load(() => { frame.src = "index.html"; });
  const links = [], seen = new Set(), pattern = new RegExp(answer);
  let read = 0;
  for (;;) {
    const article = page.querySelector("article");
    const at = article.innerText.search(pattern);
    if (at >= 0) return {links, read: read + count(article.innerText.slice(0, at)), found: true};
    const scored = [...article.querySelectorAll("a[href]")]
      .filter((link) => link.offsetParent && link.innerText.trim() && link.origin === location.origin)
      .filter((link) => !seen.has(link.href.split("#")[0]) && !link.classList.contains("headerlink"))
      .map((link) => [2 * known(link.innerText, words) + known((link.closest("tr") ?? link).innerText, words), link]);
    const best = scored.reduce((one, other) => (other[0] > one[0] ? other : one), [0, null])[1];
    if (!best || links.length === MOST_CLICKS) return {links, read, found: false};
    const before = page.createRange();
    before.setStart(article, 0);
    before.setEndAfter(best);
    read += count(before.toString());
    links.push(best.innerText.trim());
    seen.add(best.href.split("#")[0]);
    page = await load(() => best.click());
  }
}
(async () => {
  const found = [];
  for (const question of QUESTIONS) found.push(await find(question));
  fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();</script>"""


def find_answers(site: Path, questions: Sequence[Question] = QUESTIONS) -> list[Trail]:
    """Look for the answers, each from the front page.

    Args:
        site: the folder that `make docs` writes.
        questions: what to look for.

    Returns:
        How each was found, in the order of the questions.
    """
    asked = [{"words": words_of(one.text), "answer": one.answer} for one in questions]
    script = READER.replace("QUESTIONS", json.dumps(asked)).replace("MOST_CLICKS", str(MOST_CLICKS))
    found: queue.Queue[list[dict]] = queue.Queue()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Handler, directory=str(site), script=script, found=found)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as profile:
            address = f"http://127.0.0.1:{server.server_port}/reader.html"
            command = [
                find_browser(),
                *_FLAGS,
                f"--user-data-dir={profile}",
                "--remote-debugging-port=0",
                address,
            ]
            browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                answers = found.get(timeout=_TIMEOUT_S)
            finally:
                browser.terminate()
                browser.wait(20)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    return [
        Trail(question.text, tuple(answer["links"]), answer["read"], answer["found"])
        for question, answer in zip(questions, answers, strict=True)
    ]


def words_of(question: str) -> list[str]:
    """The words of a question that a reader looks for, in lower case, without endings."""
    common = {"how", "do", "i", "a", "the", "on", "of", "what", "is", "are", "where", "can", "about", "out"}
    words = [word for word in re.findall(r"\w+", question.lower()) if word not in common]
    return [word.removesuffix("s") for word in words]


def render(paths: Sequence[Trail]) -> str:
    """The paths as a Markdown table."""
    rows = [
        "| question | links from the front page | clicks | words read | seconds |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for one in paths:
        links = " → ".join(one.links) or "on the front page"
        shown = f"{one.seconds:.0f}" if one.is_found else "not found"
        rows.append(f"| {one.question} | {links} | {len(one.links)} | {one.num_words} | {shown} |")
    return "\n".join(rows) + "\n"


class _Handler(SimpleHTTPRequestHandler):
    """Serves the site and the reader, and takes what the reader found."""

    def __init__(
        self, *arguments: object, script: str, found: "queue.Queue[list[dict]]", **options: object
    ) -> None:
        self._script, self._found = script, found
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path != "/reader.html":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self._script.encode())

    def do_POST(self) -> None:
        self._found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


def main() -> None:
    """Print the table; exit with 1 if an answer was not found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", nargs="?", type=Path, default=Path(__file__).parents[1] / "site")
    site = parser.parse_args().site
    if not (site / "index.html").is_file():
        parser.error(f"{site} is not a built site (make docs)")
    paths = find_answers(site)
    print(render(paths), end="")
    sys.exit(not all(one.is_found for one in paths))


if __name__ == "__main__":
    main()
