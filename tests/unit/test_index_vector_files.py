"""Vectors that are read from a file row by row."""

from pathlib import Path

import numpy as np
import pytest

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
