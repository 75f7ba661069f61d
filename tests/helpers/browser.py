"""Chromium without a window, for tests of pages."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""None where none is installed"""

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000",
]  # fmt: skip
HARNESS = """<!doctype html><body style="margin:0"><iframe src="{src}" style="border:0;width:{width}px;height:{height}px">
</iframe><script>addEventListener("message", (told) => document.body.setAttribute("data-told", told.data));</script>"""
"""a page that frames another at a width below the least of a window, and keeps what that one posts"""


def run_browser(tmp: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start the browser with a profile of its own, and wait until it has ended."""
    profile = tmp / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    return subprocess.run(
        [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def browse(tmp: Path, *arguments: str) -> str:
    """What the browser prints."""
    return run_browser(tmp, *arguments).stdout


def photograph(page: Path, tmp: Path, width: int, height: int, *flags: str) -> np.ndarray:
    """int [height, width, 3]: what the browser draws of the page as it is."""
    (tmp / "harness.html").write_text(HARNESS.format(src=page.as_uri(), width=width, height=height), "utf-8")
    picture = tmp / "screen.png"
    window = (f"--screenshot={picture}", f"--window-size={max(width, 600)},{height}")
    browse(tmp, *flags, *window, f"file://{tmp / 'harness.html'}")
    with Image.open(picture) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)[:height, :width]
