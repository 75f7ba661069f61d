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


def header_of(text: str) -> bytes:
    """A .npy file with this header and 64 bytes of data."""
    head = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        bytes(200),
        header_of(""),
        header_of("{"),
        header_of("(" * 100),
        header_of("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"),
        header_of("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        header_of("{'descr': '<f4', 'fortran_order': False, 'shape': ('a',), }"),
        header_of("{'descr': '<f4', 'fortran_order': False, 'shape': 4, }"),
        header_of("{'descr': '<q9', 'fortran_order': False, 'shape': (4,), }"),
        header_of("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }"),
        header_of("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (4,), }"),
        header_of("{'descr': '<f4', 'fortran_order': 7, 'shape': (4,), }"),
        header_of("{'descr': '<f4', 'shape': (4,), }"),
        header_of("__import__('os').abort()"),
        b"\x93NUMPY\x07\x00" + bytes(100),
    ],
    ids=range(17),
)
def test_a_damaged_header_of_an_array_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(VersionError, match=r"a\.npy is not a readable \.npy array: ") as caught:
        files.open_array(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3)), np.ones((2, 0), "<f4"), np.asfortranarray(np.eye(3)), np.array(5)]
)
def test_every_shape_opens_as_numpy_opens_it(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    found = files.open_array(tmp_path / "a.npy")
    assert (found.shape, found.dtype, found.flags.f_contiguous) == (
        array.shape,
        array.dtype,
        array.flags.f_contiguous,
    )
    np.testing.assert_array_equal(found, array)


def test_a_member_of_an_npz_is_compared_whole(tmp_path: Path) -> None:
    """NumPy reads as many rows as the header says, and would not get to the checksum behind the last of them."""
    path = tmp_path / "a.npz"
    path.write_bytes(files.pack_arrays(rows=np.arange(30), name="x"))
    assert files.unpack_arrays(path)["rows"].tolist() == list(range(30))
    path.write_bytes(path.read_bytes().replace(b"(30,)", b"(20,)"))
    with pytest.raises(VersionError, match=r"the checksum of rows\.npy is wrong"):
        files.unpack_arrays(path)


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
    with pytest.raises(VersionError, match="already exists"):
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
    with pytest.raises(StaleOwnerError, match="its owner files are missing"):
        owner.check()


def test_two_claims_of_one_number_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Owner.claim(tmp_path)
    seen = iter([0, 1])  # another process took number 1 between looking and creating
    monkeypatch.setattr(files, "_highest_epoch", lambda _: next(seen))
    assert Owner.claim(tmp_path).epoch == 2
