"""Made photographs: to a JPEG decoder and a resampling filter what camera pictures are, without needing any."""

import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH, QUALITY = 450, 600, 90
# Grain that increases the mean file size to about 85 KB.
_GRAIN = 5.8
_OCTAVES = (8, 16, 32, 64, 128)


def write_photographs(folder: Path, *, classes: int, per_class: int, processes: int = 2) -> None:
    """`folder`/CLASS/NUMBER.jpg, 600 × 450 at quality 90, about 85 KB each; the same files every time."""
    with ProcessPoolExecutor(processes) as pool:
        for name in range(classes):
            (folder / f"class{name:03d}").mkdir(parents=True)
        numbers = range(classes * per_class)
        files = [str(folder / f"class{number % classes:03d}" / f"{number:06d}.jpg") for number in numbers]
        for _ in pool.map(_write_photograph, numbers, files, chunksize=25):
            pass


def _write_photograph(number: int, file: str) -> None:
    """Smooth random fields of falling weight at growing fineness, with a grain, as JPEG."""
    draw = np.random.default_rng([9, number])
    pixels = np.full((HEIGHT, WIDTH, 3), 0.0, dtype=np.float32)
    pixels += draw.uniform(60, 190, 3)
    for cells in _OCTAVES:
        grid = draw.normal(0, 1, (cells * 3 // 4, cells, 3)).astype(np.float32)
        grid = grid @ np.array(
            [[1, 0.8, 0.7], [0.2, 1, 0.5], [0, 0.3, 1]], np.float32
        )  # channels go together
        field = [
            np.asarray(Image.fromarray(grid[..., c]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        pixels += 240 / cells**0.9 * np.stack(field, axis=-1)
    pixels += draw.normal(0, _GRAIN * draw.uniform(0.6, 1.4), (HEIGHT, WIDTH, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    Path(file).write_bytes(buffer.getvalue())
