"""Storage: nothing half written is seen, ranges are exact, an old owner is refused."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from index.base import files
from index.base.errors import StaleOwnerError, VersionError
from index.base.files import Owner


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "new" / "a", b"old")
    files.write_atomic(tmp_path / "new" / "a", b"new")
    assert files.list_folder(tmp_path / "new") == ["a"]
    assert (tmp_path / "new" / "a").read_bytes() == b"new"


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomic(tmp_path / "a", b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(tmp_path / "a", b"new")
    assert files.list_folder(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_arrays_without_rows_and_damaged_ones(tmp_path: Path) -> None:
    files.write_array(tmp_path / "a.npy", np.empty((0, 3), np.float32))
    assert files.open_array(tmp_path / "a.npy").shape == (0, 3)
    (tmp_path / "b.npy").write_bytes(b"not an array")
    with pytest.raises(VersionError, match=r"b\.npy is not a readable \.npy array"):
        files.open_array(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(VersionError, match=r"c\.npy is not a readable"):
        files.open_array(tmp_path / "c.npy")


@pytest.mark.parametrize("content", [(), ("file",)])
def test_a_published_folder_is_never_replaced(tmp_path: Path, content: tuple[str, ...]) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "final").mkdir()
    for name in content:
        (tmp_path / "final" / name).touch()
    with pytest.raises(VersionError, match="exists already"):
        files.publish_folder(tmp_path / "staging", tmp_path / "final")
    files.publish_folder(tmp_path / "staging", tmp_path / "other")
    assert (tmp_path / "other").is_dir()


def test_only_old_staging_goes(tmp_path: Path) -> None:
    for name in ("old", "kept", "young"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    past = time.time() - 7200
    for name in ("old", "kept"):
        os.utime(tmp_path / name / "file", (past, past))
        os.utime(tmp_path / name, (past, past))
    assert files.remove_stale_staging(tmp_path, keep=("kept",), older_than_s=3600) == ["old"]
    assert files.list_folder(tmp_path) == ["kept", "young"]


def test_a_later_claim_makes_the_earlier_one_stale_also_in_copies(tmp_path: Path) -> None:
    first = Owner.claim(tmp_path / "run")
    copy = pickle.loads(pickle.dumps(first))
    copy.check()
    second = Owner.claim(tmp_path / "run")
    second.check()
    assert (first.epoch, second.epoch) == (1, 2)
    for owner in (first, copy):
        with pytest.raises(StaleOwnerError, match=f'owned by claim 2 .*"pid": {os.getpid()}.* holds claim 1'):
            owner.check()


def test_an_owner_whose_files_are_gone_is_stale(tmp_path: Path) -> None:
    owner = Owner.claim(tmp_path)
    files.remove_folder(tmp_path / "owner")
    with pytest.raises(StaleOwnerError, match="its owner files are gone"):
        owner.check()


def test_two_claims_of_one_number_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Owner.claim(tmp_path)
    seen = iter([0, 1])  # another process took number 1 between looking and creating
    monkeypatch.setattr(files, "_highest_epoch", lambda _: next(seen))
    assert Owner.claim(tmp_path).epoch == 2
