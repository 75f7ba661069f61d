"""Vectors that are read from a file row by row."""

from pathlib import Path

import numpy as np
import pytest

from index.vectors import find_bad_row
from index.writing import vector_files


def test_a_signal_in_the_middle_of_a_read_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map of the file still has a view then, which closing it would complain of."""
    np.save(tmp_path / "X.npy", np.zeros((4, 3), np.float32))
    np.save(tmp_path / "order.npy", np.arange(4))
    vectors = vector_files.FileVectors(path=tmp_path / "X.npy", order=tmp_path / "order.npy", name="X")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vector_files.np, "take", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vectors.read(0, 4)


@pytest.mark.parametrize(
    ("row", "value", "what"),
    [
        (None, 0.0, None),
        (2, np.nan, "a NaN or infinite number"),
        (4999, -np.inf, "a NaN or infinite number"),
        (1234, -1.1e18 / 4, "a norm near 1e18 or above"),
    ],
)
def test_a_bad_row_is_found_among_rows_whose_sum_is_large(row, value, what) -> None:
    """Each row is just within the limit, which the sum of all squares is far above."""
    vectors = np.full((5000, 16), 0.99e18 / 4, np.float32)
    vectors[::3] = 0
    if row is not None:
        vectors[row, 5] = value
    assert find_bad_row(vectors) == (None if row is None else (row, what))
    assert find_bad_row(vectors[:, ::2]) is None
