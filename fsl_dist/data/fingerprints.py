"""Detection of near-duplicate images: a perceptual hash proposes pairs, the correlation of thumbnails decides."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_HASH_BYTES = 8
_THUMB_SIDE = 16
_NUM_PIXELS = _THUMB_SIDE**2
_HASHED_SIDE = 256

# An image counts as plain-coloured if its thumbnail's three variances sum to less than this (values of 0 … 255).
_FLAT_VARIANCE = 1.0
# Thumbnails per block as float64: 25 MB.
_ROWS_AT_ONCE = 4096


def fingerprint(image: Image.Image) -> bytes:
    """64-bit perceptual hash (`imagehash.phash`), then a thumbnail of 16 × 16 pixels, RGB: 776 bytes.

    `image`: upright, mode RGB or L. Large ones are averaged down to a shorter side of 256 to 511 pixels first: 8 ms
    instead of 220 for 12 million pixels.
    """
    import imagehash  # takes 0.2 s, because it imports SciPy

    small = image.reduce(max(1, min(image.size) // _HASHED_SIDE)).convert("RGB")
    thumb = small.resize((_THUMB_SIDE, _THUMB_SIDE), Image.Resampling.BILINEAR)
    return np.packbits(imagehash.phash(small).hash).tobytes() + thumb.tobytes()


class Fingerprints:
    """Fingerprints of a list of images, one row each.

    `encoded`: the results of `fingerprint`; `contents`: CRC-32 and size in bytes of each stored file.
    """

    def __init__(self, encoded: Sequence[bytes], contents: Sequence[tuple[int, int]]) -> None:
        rows = np.frombuffer(b"".join(encoded), np.uint8).reshape(len(encoded), _HASH_BYTES + 3 * _NUM_PIXELS)
        self.hashes: NDArray[np.uint8] = np.ascontiguousarray(rows[:, :_HASH_BYTES])
        """uint8 [n, 8]"""
        self.thumbs: NDArray[np.uint8] = rows[:, _HASH_BYTES:]
        """uint8 [n, 768]: pixel after pixel, red, green, blue"""
        self.contents = list(contents)
        self._sums = np.zeros((len(rows), 3))
        self._spreads = np.zeros(len(rows))
        for part in _cut(len(rows)):
            thumbs = self.thumbs[part].astype(np.float64)
            self._sums[part] = thumbs.reshape(-1, _NUM_PIXELS, 3).sum(1)
            self._spreads[part] = _NUM_PIXELS * _multiply(thumbs, thumbs) - (self._sums[part] ** 2).sum(1)
        self.is_flat: NDArray[np.bool_] = self._spreads < _NUM_PIXELS**2 * _FLAT_VARIANCE
        """bool [n]: plain-coloured, so that hash and correlation are meaningless"""

    def __len__(self) -> int:
        return len(self.hashes)

    def first_copies(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: for each of `rows` the first of them whose file has the same content; often itself."""
        first: dict[tuple[object, ...], int] = {}
        return np.array(
            [
                first.setdefault(
                    (self.contents[row], self.hashes[row].tobytes(), self.thumbs[row].tobytes()), row
                )
                for row in rows.tolist()
            ],
            dtype=np.int64,
        )

    def correlate(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [n]: correlation of each pair's thumbnails, each channel about its own mean;
        none may be plain-coloured.

        Computed from sums of integers, which are exact in float64: the same on every machine.
        """
        covariances = -(self._sums[rows] * self._sums[others]).sum(1)
        for part in _cut(len(rows)):
            first, second = (self.thumbs[chosen[part]].astype(np.float64) for chosen in (rows, others))
            covariances[part] += _NUM_PIXELS * _multiply(first, second)
        return covariances / np.sqrt(self._spreads[rows] * self._spreads[others])


def _cut(num_rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, num_rows, _ROWS_AT_ONCE)]


def _multiply(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [n]: inner product of each row (float64 [n, 768]) with its partner."""
    return np.einsum("ij,ij->i", first, second)
