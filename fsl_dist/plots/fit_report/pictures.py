"""Small pictures of samples inside the page."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.pixels import MAX_PIXELS, find_excess_pixels, open_upright
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError

_SIDE = 144
# Smaller pictures keep their pixels, which the browser enlarges as squares.
_PIXELATED_SIDE = 48
_QUALITY = 78


class Thumbnails:
    """Pictures of a data set's samples as `<img>` elements, a few kB each; close it when done."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._store = ShardStore(catalogue)
        self._made: dict[int, str] = {}

    def image(self, sample: int, words: str) -> str:
        """The picture of a sample, described by `words`; a grey square where its image cannot be used."""
        if sample not in self._made:
            self._made[sample] = self._make(sample)
        source = self._made[sample]
        if not source:
            return '<div class="lost">cannot be read</div>'
        kind = ' class="pixelated"' if source.startswith("data:image/png") else ""
        return f'<img{kind} alt="{escape(words)}" src="{source}">'

    def close(self) -> None:
        """Release the shards."""
        self._store.close()

    def _make(self, sample: int) -> str:
        try:
            (encoded,), mismatched = self._store.read_compared(np.array([sample]))
        except DataError:
            return ""
        if mismatched or find_excess_pixels(encoded, MAX_PIXELS):
            return ""
        try:
            picture = open_upright(encoded)
        except Exception:  # PIL raises a dozen types for damaged images
            return ""
        buffer = io.BytesIO()
        if max(picture.size) <= _PIXELATED_SIDE:
            picture.save(buffer, "PNG")
            kind = "png"
        else:
            scale = min(_SIDE / max(picture.size), 1.0)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_QUALITY)
            kind = "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
