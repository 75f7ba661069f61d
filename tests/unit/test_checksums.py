"""Checksums of small files: what is written reads back, every change is refused, files without one open with a line."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.base import checksums
from index.base.errors import VersionError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FACTS = {"step": 3, "loss": 0.1, "name": "ü", "nested": {"a": [1, 2.5, None]}}


@given(st.dictionaries(st.text().filter(lambda key: key != checksums.KEY), VALUES, max_size=5))
def test_json_reads_back(data: dict) -> None:
    text = checksums.encode_json(data, "place").decode()
    assert checksums.decode_json(text, "f", "place") == (json.loads(json.dumps(data)), True)


def test_every_flipped_bit_of_json_is_refused_or_changes_nothing() -> None:
    good = checksums.encode_json(FACTS)
    num_refused = 0
    for place in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[place] ^= 1 << bit
            try:
                data, is_checked = checksums.decode_json(damaged.decode(errors="replace"), "f")
            except VersionError:
                num_refused += 1
            else:
                # White space, or the name of the checksum, without which it is a file of an earlier version.
                assert data == FACTS or not is_checked
    assert num_refused > 6 * len(good)


def test_json_may_be_written_in_another_order_and_layout() -> None:
    sealed = json.loads(checksums.encode_json(FACTS))
    text = json.dumps(dict(reversed(sealed.items())), indent=7)
    assert checksums.decode_json(text, "f") == (FACTS, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[1]", "it contains a list, not a mapping"),
        ('{"a": 1, "a": 1}', "'a' is given twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "checksum": 5}', "does not match its checksum"),
        ('{"a": ' + "9" * 5000 + "}", "is damaged"),
    ],
)
def test_what_is_no_sound_json_is_one_line(text: str, said: str) -> None:
    with pytest.raises(VersionError, match=said) as caught:
        checksums.decode_json(text, "f")
    assert "\n" not in str(caught.value)


def test_a_file_of_another_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(checksums.encode_json(FACTS, "0001"))
    assert checksums.read_json(tmp_path / "a.json", root=tmp_path, name="0001") == FACTS
    with pytest.raises(VersionError, match="does not match its checksum"):
        checksums.read_json(tmp_path / "a.json", root=tmp_path, name="0002")


def test_lines_are_compared_one_by_one_and_a_cut_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"step": step, "loss": float("nan")} for step in range(3)]
    path.write_text("".join(map(checksums.encode_line, lines)) + '{"step": 3')
    assert repr(checksums.read_lines(path, root=tmp_path)) == repr(lines)
    path.write_text(path.read_text().replace('"step": 1', '"step": 7'))
    with pytest.raises(VersionError, match=r"log\.jsonl, line 2, is damaged"):
        checksums.read_lines(path, root=tmp_path)


def test_yaml_has_its_checksum_in_a_comment(tmp_path: Path) -> None:
    path, body = tmp_path / "config.yaml", "run:\n  dir: ü\n"
    path.write_bytes(checksums.encode_yaml(body))
    assert checksums.read_yaml_text(path, root=tmp_path) == body
    good = path.read_bytes()
    for damaged in (
        good.replace(b"dir", b"die"),
        good[:-3],
        good[:12],
        good.replace(b"checksum", b"checksum 0"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(VersionError, match=r"config\.yaml is damaged"):
            checksums.read_yaml_text(path, root=tmp_path)


def test_files_without_a_checksum_are_named_once_for_each_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("1.json", "2.json"):
            (tmp_path / folder / name).write_text('{"a": 1}')
            root = tmp_path / folder
            assert checksums.read_json(root / name, root=root) == {"a": 1}
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2
    assert f"doctor({tmp_path / 'a'}, write_checksums=True)" in said[0]
