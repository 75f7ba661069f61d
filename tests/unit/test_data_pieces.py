"""The pieces of a pack: a stopped one resumes with those that are finished and sound, and only with those."""

import json
import logging
import subprocess
import sys

import pytest
from dataset_files import all_bytes, write_images

from fsl_dist.data.ingest import pack_pieces
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.errors import RequestError


def test_workers_load_no_heavy_library():
    program = (
        "import sys, fsl_dist.data.ingest.shards.member_images, fsl_dist.data.ingest.shard_writer, fsl_dist.data.ingest.source_images\n"
        "print([m for m in ('torch', 'pyarrow', 'scipy', 'ray', 'faiss') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


class Stopped(Exception):
    """Stands for whatever ends a pack from outside."""


def stop_after(stage, least):
    def progress(now, done, total):
        if now == stage and done >= least:
            raise Stopped

    return progress


@pytest.fixture
def source(tmp_path, monkeypatch):
    """21 images, one of them bad, in 6 chunks; noise of 1 MB and more makes 2 shards."""
    monkeypatch.setattr(pack_pieces, "CHUNK_SIZE", 4)
    root = write_images(tmp_path / "src", {"a": 10, "b": 10}, size=(200, 180))
    (root / "a" / "bad.png").write_text("no image")
    return root


OPTIONS = {"shard_size_mb": 1, "processes": 1}


def test_a_stopped_pack_goes_on_with_the_pieces_it_finished(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = PackOptions(**OPTIONS, resize_shorter=150)
    pack(source, tmp_path / "expected", options)
    for stage, least in (("checking", 8), ("checking", 12), ("packing", 1)):
        with pytest.raises(Stopped):
            pack(source, tmp_path / "out", options, stop_after(stage, least))
        assert not (tmp_path / "out").exists()
    assert "resumed: 2 of 6 pieces of stage 'checking' were there" in caplog.text
    assert "resumed: 3 of 6 pieces of stage 'checking' were there" in caplog.text
    seen = []
    report = pack(source, tmp_path / "out", options, lambda *args: seen.append(args))
    assert "resumed: 6 of 6 pieces of stage 'checking' were there" in caplog.text
    assert "resumed: 1 of 2 pieces of stage 'packing' were there" in caplog.text
    assert report.num_reused == 7
    assert seen == [("packing", 20, 20)]
    assert [bad.path for bad in report.bad_samples] == ["a/bad.png"]
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["expected", "out", "src"]


def changed_file(source, options):
    path = source / "a/000.png"
    path.write_bytes(path.read_bytes())  # the same bytes, at another time
    return options


def changed_label(source, options):
    rows = [f"{p.relative_to(source)},{p.parent.name}" for p in sorted(source.rglob("*.png"))]
    (source / "t.csv").write_text("\n".join(["file,class", *rows, ""]).replace("bad.png,a", "bad.png,b"))
    return PackOptions(**OPTIONS, columns=TableColumns(table=str(source / "t.csv")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed_file, "another list of source files, or change in one"),
        (changed_label, "another list of source files, or change in one"),
        (lambda source, options: PackOptions(**OPTIONS, seed=1), "another seed"),
        (
            lambda source, options: PackOptions(**OPTIONS, order="class", resize_shorter=9),
            "another order, another resize_shorter",
        ),
        (lambda source, options: PackOptions(**OPTIONS, dedupe="phash"), "another dedupe"),
    ],
)
def test_pieces_of_another_plan_are_discarded(source, tmp_path, caplog, change, reason):
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("packing", 1))
    options = change(source, PackOptions(**OPTIONS))
    report = pack(source, tmp_path / "out", options)
    assert report.num_reused == 0
    assert f"an earlier try is discarded: it had {reason}\n" in caplog.text
    pack(source, tmp_path / "expected", options)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


@pytest.mark.integration
def test_another_split_or_number_of_processes_takes_the_pieces_over(source, tmp_path):
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("packing", 1))
    options = PackOptions(shard_size_mb=1, processes=2, split="base-novel", num_base=1)
    assert pack(source, tmp_path / "out", options).num_reused == 7
    pack(source, tmp_path / "expected", options)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_damaged_pieces_are_made_again(source, tmp_path):
    options = PackOptions(**OPTIONS, resize_shorter=150)
    pack(source, tmp_path / "expected", options)
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", options, stop_after("packing", 1))
    (work,) = (tmp_path / ".out.partial").iterdir()
    note = work / "finished/chunk-000001.kept.json"
    for damage in (
        b"",
        b"[]",
        b"{}",
        note.read_bytes()[:-9],
        note.read_bytes().replace(b"150", b"151"),
    ):
        note.write_bytes(damage)
        with pytest.raises(Stopped):
            pack(source, tmp_path / "out", options, stop_after("checking", 1))
    kept = work / "chunk-000002.kept"
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    (work / "chunk-000003.kept").unlink()
    shard = work / "out/shards/shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    (work / "out/shards/.shard-000001.tar.x.tmp").write_text("half")
    assert pack(source, tmp_path / "out", options).num_reused == 4
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_an_append_goes_on_and_keeps_to_its_version(source, tmp_path, caplog):
    first = write_images(tmp_path / "first", {"a": 3, "b": 3})
    for path in first.rglob("*.png"):
        path.rename(path.with_name("old" + path.name))
    for name in ("out", "expected"):
        pack(first, tmp_path / name, PackOptions(resize_shorter=150))
    append(source, tmp_path / "expected", PackOptions(**OPTIONS))
    with pytest.raises(Stopped):
        append(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("packing", 1))
    with pytest.raises(RequestError, match="leave seed=3 out"):  # what is refused costs no pieces
        append(source, tmp_path / "out", PackOptions(seed=3))
    assert append(source, tmp_path / "out", PackOptions(**OPTIONS)).num_reused == 7
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_an_old_kind_of_partial_folder_is_discarded(source, tmp_path, caplog):
    (tmp_path / ".out.partial/shards").mkdir(parents=True)
    (tmp_path / ".out.partial/x").write_text("x")
    pack(source, tmp_path / "out", PackOptions(**OPTIONS))
    assert "'" + str(tmp_path / ".out.partial/shards") + "' has no plan" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "src"]


def test_a_plan_names_what_pieces_follow_from(source, tmp_path):
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("checking", 1))
    (plan,) = (tmp_path / ".out.partial").glob("*/plan.json")
    assert json.loads(plan.read_bytes()).keys() == {
        "list of source files, or change in one",
        "order",
        "shard_size_mb",
        "resize_shorter",
        "resize",
        "pixel_range",
        "dedupe",
        "num_classes",
        "seed",
        "version of the data set",
        "version of Pillow",
        "format",
    }
