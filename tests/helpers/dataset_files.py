"""Sources of data sets for tests (noise, class folders, tables), and what packed ones and other folders hold."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.store import ShardStore


def encode(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """A file's content: of a PIL image, or of pixels 0 … 255."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image, dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_noise(seed: int | Sequence[int] = 0, kind: str = "PNG", size: tuple[int, int] = (10, 12)) -> bytes:
    """A file of random pixels; size: (height, width)."""
    return encode(np.random.default_rng(seed).integers(0, 256, (*size, 3)), kind)


def write_images(
    root: Path,
    counts: Mapping[str, int],
    *,
    first: int = 0,
    size: tuple[int, int] = (9, 11),
    kind: str = "PNG",
) -> Path:
    """Class folders with `counts[name]` noisy images 000, 001 … (or from `first` on), no two alike; returns `root`."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            content = encode_noise([number, index], kind, size)
            (root / name / f"{index:03d}.{kind.lower()}").write_bytes(content)
    return root


def write_table(path: Path, rows: Sequence[Mapping[str, object] | Sequence[object]], head: str = "") -> str:
    """A CSV file; rows that are no mappings are named by `head`. Returns the path as text."""
    names = head.split(",") if head else list(rows[0])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(row.values() if isinstance(row, Mapping) else row for row in rows)
    return str(path)


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Relative path → content of every file at or below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_images(catalogue: Catalogue) -> dict[str, bytes]:
    """Key → encoded image of every sample, in the order of ids."""
    ids = np.arange(catalogue.num_samples)
    store = ShardStore(catalogue)
    try:
        return dict(zip(catalogue.keys(ids), map(bytes, store.read(ids)), strict=True))
    finally:
        store.close()
