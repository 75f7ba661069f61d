"""Code blocks of the documentation's pages: what a test runs of them, and the commands that they show."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
_INDENTED = re.compile(r"(?:^    .*\S.*\n)+", re.M)


def fenced(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page in their order: language and text."""
    return _FENCE.findall(page.read_text(encoding="utf-8"))


def script_of(page: Path, folder: Path) -> str:
    """A shell script of what a page runs: its `bash` blocks and its `python` blocks.

    Python blocks with nothing to run between them are one program, written to `folder`. `sh` blocks are shown only.
    """
    blocks = [(kind, text) for kind, text in fenced(page) if kind in ("bash", "python")]
    lines = ["set -euo pipefail -o monitor", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for number, (kind, text) in enumerate(blocks):
        if kind == "bash":
            lines.append(text)
            continue
        path = folder / f"block-{number}.py"
        if number > 0 and blocks[number - 1][0] == "python":
            lines.pop()
            earlier = folder / f"block-{number - 1}.py"
            text = f"{earlier.read_text(encoding='utf-8')}\n{text}"
        path.write_text(text, encoding="utf-8")
        lines.append(f"python {shlex.quote(str(path))}")
    return "\n".join(lines)


def run_page(page: Path, folder: Path, *, replaced: dict[str, str] | None = None, **variables: str) -> str:
    """Run a page in `folder` as a reader would; returns what it printed.

    Args:
        page: the page.
        folder: where its commands run.
        replaced: texts of the page and what stands for them, such as a free port.
        **variables: further environment variables.
    """
    scripts = folder.with_name(f"{folder.name}-scripts")
    scripts.mkdir()
    script = script_of(page, scripts)
    for old, new in (replaced or {}).items():
        assert old in script + "".join(path.read_text() for path in scripts.iterdir()), (
            f"{page.name} has no {old}"
        )
        script = script.replace(old, new)
        for path in scripts.iterdir():
            path.write_text(path.read_text().replace(old, new))
    binaries = Path(sys.executable).parent
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = {
        **kept,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "default",
        **variables,
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{page.name}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def write_digits(folder: Path) -> Path:
    """Write the images that the tutorials work on to `folder`/digits, by the first block of the first tutorial."""
    folder.mkdir(parents=True, exist_ok=True)
    block = fenced(ROOT / "docs" / "tutorials" / "digits.md")[0][1]
    subprocess.run([sys.executable, "-c", block], cwd=folder, check=True, timeout=120)
    return folder


def commands_of(page: Path) -> Iterator[list[str]]:
    """The `fsl-dist` commands that a page shows, in fenced and in indented blocks, each as its arguments."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for kind, block in _FENCE.findall(text) if kind in ("", "bash", "sh", "console")]
    blocks += [
        re.sub(r"^    ", "", block, flags=re.M) for block in _INDENTED.findall(_FENCE.sub("", text) + "\n")
    ]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("fsl-dist "):
                yield shlex.split(re.split(r" (?:&&|&|>|\|) ?", line)[0], comments=True)[1:]


def inline_commands_of(page: Path) -> Iterator[list[str]]:
    """The `fsl-dist` commands in the sentences and tables of a page, each as its arguments."""
    text = _INDENTED.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))
    for line in re.findall(r"`fsl-dist ([^`]+)`", text):
        yield shlex.split(" ".join(line.split()), comments=True)
