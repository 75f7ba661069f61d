"""The commands `pack` and `inspect` as a user runs them: exit codes, one JSON object, one-line errors."""

import json
import os
import subprocess
import sys

import pytest
from dataset_files import encode_noise, write_images
from PIL import Image

from cluster.cli import main

pytestmark = pytest.mark.integration


def run(*arguments):
    """(exit code, stdout, stderr) of the command line."""
    done = subprocess.run(
        [sys.executable, "-c", "from cluster.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def source(tmp_path):
    return write_images(tmp_path / "src", {"ant": 10, "owl": 10})


def test_pack_then_inspect(source, tmp_path):
    code, out, _ = run("pack", source, tmp_path / "out", "--json", "--fractions", "0.5,0.2,0.3")
    report = json.loads(out)
    assert (code, report["num_samples"], report["num_bad"]) == (0, 20, 0)
    assert report["split_counts"] == {"train": 10, "val": 4, "test": 6}
    code, out, _ = run("inspect", tmp_path / "out", "--json", "--verify")
    summary = json.loads(out)
    assert (code, summary["num_classes"], summary["damaged"]) == (0, 2, [])
    assert summary["fingerprint"] == report["fingerprint"]
    assert summary["splits"]["test"]["num_samples"] == 6


def test_names_that_are_not_utf8_are_shown_with_escapes_everywhere(tmp_path):
    source, out = (os.path.join(os.fsencode(tmp_path), name) for name in (b"s\xe9rie", b"\x83\x5c"))
    for number, folder in enumerate((b"na\xefve", b"na\xeeve", "é".encode())):
        os.makedirs(os.path.join(source, folder))
        for index in range(5):
            with open(os.path.join(source, folder, b"%d\xe9.png" % index), "wb") as file:
                file.write(encode_noise([number, index]))
    with open(os.path.join(source, "é".encode(), b"caf\xe9\n.png"), "wb") as file:
        file.write(b"no image")
    code, text, err = run("pack", os.fsdecode(source), os.fsdecode(out), "--allow-bad", "--json")
    report = json.loads(text)
    assert (code, report["num_samples"], report["num_classes"]) == (0, 15, 3)
    assert [bad["path"] for bad in report["bad_samples"]] == [r"é/caf\xe9\x0a.png"]
    assert r"2 names are not UTF-8 on disk, such as 'na\xeeve', 'na\xefve'" in err
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted(map(os.path.basename, (source, out)))
    code, text, _ = run("inspect", os.fsdecode(out), "--verify")
    assert code == 0
    assert r"na\xefve" in text
    code, _, err = run("pack", os.fsdecode(source), os.fsdecode(out), "--append")
    assert (code, err.splitlines()[-1][:5]) == (2, "error")
    shards = os.path.join(os.fsdecode(out), "shards")
    code, text, _ = run("adopt", shards, tmp_path / "adopted", "--json")
    assert (code, json.loads(text)["num_samples"]) == (0, 15)
    code, text, _ = run("inspect", tmp_path / "adopted", "--verify", "--json")
    assert (code, json.loads(text)["damaged"]) == (0, [])


def test_names_that_the_terminal_lacks_are_shown_with_escapes(source, tmp_path, monkeypatch):
    (source / "ant").rename(source / "कि")
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    assert run("pack", source, tmp_path / "out")[0] == 0
    code, text, _ = run("inspect", tmp_path / "out")
    assert code == 0
    assert r"\u0915\u093f" in text


def test_inspect_draws(source, tmp_path):
    run("pack", source, tmp_path / "out")
    code, out, _ = run("inspect", tmp_path / "out", "--plots", tmp_path / "pictures", "--json")
    drawn = [tmp_path / "pictures" / name for name in ("class_distribution.png", "samples.png")]
    assert (code, json.loads(out)["plots"]) == (0, [str(path) for path in drawn])
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_images_are_stored_at_the_size_that_is_asked_for(source, tmp_path):
    for options, size in ((["--resize-shorter", "6"], (6, 7)), (["--resize", "4x5"], (4, 5))):
        name = options[0]
        code, _, err = run("pack", source, tmp_path / name, *options)
        assert (code, err) == (0, "")
        code, out, _ = run("inspect", tmp_path / name, "--verify", "--json")
        found = json.loads(out)
        assert (code, found["damaged"]) == (0, [])
        assert (found["height"][2], found["width"][2]) == size


def test_near_duplicates_are_left_out_or_listed(source, tmp_path):
    image = Image.open(source / "ant" / "003.png")
    image.save(source / "owl" / "again.png", optimize=True, compress_level=1)
    assert run("pack", source, tmp_path / "kept")[0] == 0
    code, out, err = run("inspect", tmp_path / "kept", "--near-duplicates", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    (pair,) = found["near_duplicates"]["pairs"]
    assert ({pair["first"], pair["second"]}, pair["distance"]) == ({"ant/003", "owl/again"}, 0)
    assert found["near_duplicates"]["num_across_classes"] == 1
    assert any("pairs of near-duplicates are in different classes" in flag for flag in found["flags"])
    code, out, _ = run("inspect", tmp_path / "kept", "--near-duplicates")
    assert (code, "compared    21 images: 1 pairs of near-duplicates" in out) == (0, True)
    code, out, err = run("pack", source, tmp_path / "out", "--dedupe", "phash", "--json")
    report = json.loads(out)
    assert (code, report["num_samples"], report["num_bad"]) == (0, 20, 0)
    assert (report["num_duplicates"], report["num_label_conflicts"]) == (1, 1)
    assert report["duplicates"] == [
        {"path": "owl/again.png", "kept": "ant/003.png", "distance": 0, "label": "owl", "kept_label": "ant"}
    ]
    assert "label conflict: 'owl/again.png' (class 'owl')" in err
    code, out, _ = run("inspect", tmp_path / "out", "--json")
    assert (code, json.loads(out)["duplicates"]) == (0, report["duplicates"])
    code, _, err = run("pack", source, tmp_path / "other", "--dedupe", "sift")
    assert (code, "sift" in err) == (2, True)


def test_bad_samples_decide_the_exit_code(source, tmp_path):
    (source / "ant" / "text.jpg").write_text("no image")
    code, out, err = run("pack", source, tmp_path / "one", "--json")
    assert (code, json.loads(out)["num_bad"], json.loads(out)["num_samples"]) == (1, 1, 20)
    assert "left out 'ant/text.jpg'" in err
    code, out, _ = run("pack", source, tmp_path / "two", "--allow-bad")
    assert code == 0
    assert "left out 1 bad samples" in out
    code, out, _ = run("inspect", tmp_path / "two")
    assert code == 0
    assert "ant/text.jpg: is not an image that decodes" in out


def test_damage_is_found_and_exits_1(source, tmp_path):
    run("pack", source, tmp_path / "out")
    shard = tmp_path / "out" / "shards" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1  # in the first image
    shard.write_bytes(data)
    code, out, _ = run("inspect", tmp_path / "out", "--verify", "--json")
    assert (code, len(json.loads(out)["damaged"])) == (1, 1)


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--label-column", "x"], "set the table with --table"),
        (["--fractions", "a,b,c"], "--fractions=a,b,c must be three numbers"),
        (["--fractions", "0.5,0.6,0.2"], "that sum to 1"),
        (["--table", "nowhere.csv"], "no such file"),
        (["--split", "sideways"], "is not one of"),
        (["--resize", "224"], "--resize=224 must be height and width in pixels, such as 224x224"),
        (["--resize", "8x8", "--resize-shorter", "8"], "exclude each other; leave one out"),
        (["--pixel-range", "5"], "--pixel-range=5 must be two numbers, such as -1024:3071"),
        (["--pixel-range", "5:1"], "--pixel-range 5:1 must be two numbers, the smaller first"),
        (["--mask-column", "mask"], "set the table with --table"),
        (["--split", "base-novel"], "needs --num-base"),
    ],
)
def test_a_bad_request_exits_2_and_writes_nothing(source, tmp_path, extra, text, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fsl-dist", "pack", str(source), str(tmp_path / "out"), *extra])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (2, "")
    assert text in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_inspecting_what_is_no_data_set_exits_2(tmp_path):
    code, _, err = run("inspect", tmp_path)
    assert code == 2
    assert err.count("\n") == 1
