"""Image files as PIL sees them: decoding upright, and finding those that do not decode. No torch here."""

import io
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

Encoded = bytes | memoryview
"""An image file's content."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image file that decodes."""

    width: int
    """pixels, upright"""
    height: int
    size_bytes: int
    crc32: int
    extension: str
    """without the dot, fitting the content"""


def open_upright(encoded: Encoded, channels: int = 3) -> Image.Image:
    """Decode with PIL: first frame, turned as its EXIF orientation says, mode RGB (channels 3) or L (1).

    Raises whatever PIL raises for an image that is cut or no image.
    """
    return _turn_upright(Image.open(io.BytesIO(encoded)), channels)


def _turn_upright(opened: Image.Image, channels: int) -> Image.Image:
    """Alpha is dropped, as DALI does; 16-bit grey keeps its upper 8 bits, where PIL itself would clip to white."""
    opened.load()
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        depths = np.asarray(image)
        image = Image.fromarray((depths >> 8 if depths.max(initial=0) > 255 else depths).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns where a palette's transparency is dropped in one step
    return image.convert("RGB" if channels == 3 else "L")


def check_image(file: str) -> CheckedImage | str:
    """What the file holds, or why it cannot be used. Reads and decodes all of it."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return check_encoded(data, file)


def check_encoded(data: bytes, file: str) -> CheckedImage | str:
    """The same for the content of a file called `file`. Decodes all of it."""
    if not data:
        return "has zero bytes"
    try:
        opened = Image.open(io.BytesIO(data))
        extension = _choose_extension(file, opened.format or "")
        image = _turn_upright(opened, 3)
    except Exception as error:  # PIL raises a dozen types for damaged images
        return f"is not an image that decodes: {explain(error)}"
    return CheckedImage(image.width, image.height, len(data), zlib.crc32(data), extension)


def check_in_order(
    items: Sequence[_Item], check: Callable[[_Item], CheckedImage | str], threads: int
) -> Iterator[tuple[_Item, CheckedImage | str]]:
    """Check on `threads` threads (0: one a core, at most 8), in order, with few images in memory at a time."""
    threads = threads or min(8, os.cpu_count() or 1)
    running: deque[tuple[_Item, Future[CheckedImage | str]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="fsl-dist-check") as pool:
        for item in items:
            running.append((item, pool.submit(check, item)))
            if len(running) > 4 * threads:
                first, future = running.popleft()
                yield first, future.result()
        for last, future in running:
            yield last, future.result()


def explain(error: Exception) -> str:
    """PIL's reason in one line, without the address of a buffer."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "its format is not known" if text.startswith("cannot identify image file") else text


def _choose_extension(file: str, image_format: str) -> str:
    """The file's own extension in lower case where it is one of its format's, else the format's usual one."""
    suffix = os.path.splitext(file)[1].lower()
    if Image.registered_extensions().get(suffix) == image_format:
        return suffix[1:]
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(image_format, image_format.lower()[:4])
