"""Writers of data sets for real: killed packs, shards that webdataset wrote, the commands and their exit codes."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from dataset_files import all_bytes, write_images
from PIL import Image

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.training.runlog import read_metrics

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from cluster.cli import main; main()"]
SETTINGS = [
    "data.channels=1",
    "data.resize=exact",
    "data.resize_size=16",
    "data.image_size=16",
    "data.mean=[0.5]",
    "data.std=[0.5]",
    "backbone.name=conv4",
    "backbone.width=8",
    "training.patience=0",
    "training.epochs=1",
    "method.kind=pcn",
    "method.clusters=2",
    "evaluation.delta_tau=[0]",
    "episode.n_way=5",
    "episode.k_shot=3",
    "episode.n_query=2",
    "episode.per_step=1",
    "episode.per_epoch=6",
]


def run(*arguments):
    """(exit code, stdout, stderr) of the command line."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def kill_at_random(command, num_kills, seconds, done):
    """Start `command` and kill it at a random moment until `num_kills` were hit before they ended.

    `seconds` is what an undisturbed run took; where the machine has become faster since, a run ends before its kill,
    and the window shrinks. `done()` looks at what is left after each try and clears a finished one.
    """
    draw = random.Random(0)
    killed = 0
    for _ in range(4 * num_kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.2, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        was_hit = process.wait() == -signal.SIGKILL
        killed += was_hit
        seconds *= 1.0 if was_hit else 0.9
        done()
        if killed == num_kills:
            return
    raise AssertionError(
        f"only {killed} of {4 * num_kills} runs were still running when they were to be killed"
    )


def kill_when(command, is_time):
    """Start `command` and kill it as soon as `is_time()`, before it ends."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_time():
        assert process.poll() is None, "it ended before it was to be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_pack_killed_at_random_moments_ends_byte_identical(tmp_path, num_kills):
    # 60 images of 270 kB: a dozen shards of 2 MB, each forced to the disk.
    source = write_images(tmp_path / "src", {"ant": 20, "bee": 20, "owl": 20}, size=(300, 300), kind="BMP")
    options = ["--shard-size-mb", "2", "--seed", "5"]
    started = time.monotonic()
    assert run("pack", source, tmp_path / "undisturbed", *options)[0] == 0
    seconds = time.monotonic() - started
    expected = all_bytes(tmp_path / "undisturbed")
    assert len(expected) > 8

    room = tmp_path / "room"
    room.mkdir()
    num_unfinished = 0

    def check():
        # At every moment OUT is whole or not there.
        nonlocal num_unfinished
        if (room / "out").exists():
            assert all_bytes(room / "out") == expected
            assert run("pack", source, room / "out", *options)[0] == 2  # and what is there is left alone
            (room / "out").rename(tmp_path / f"finished-{num_unfinished}-{time.monotonic_ns()}")
        else:
            num_unfinished += (room / ".out.partial").exists()

    command = [*COMMAND, "pack", str(source), str(room / "out"), *options]
    kill_at_random(command, num_kills, seconds, check)
    assert run("pack", source, room / "out", *options)[0] == 0
    assert all_bytes(room / "out") == expected
    assert os.listdir(room) == ["out"]


@pytest.mark.parametrize("num_kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_append_leaves_the_data_set_as_it_was(tmp_path, num_kills):
    first = write_images(tmp_path / "src", {"ant": 8, "bee": 8}, size=(20, 20), kind="PNG")
    more = write_images(tmp_path / "more", {"bee": 20, "cat": 20, "dog": 20}, size=(300, 300), kind="BMP")
    for path in more.rglob("*.bmp"):
        path.rename(path.with_name("new" + path.name))
    for name in ("undisturbed", "out"):
        assert run("pack", first, tmp_path / name)[0] == 0
    before = all_bytes(tmp_path / "out")
    options = ["--append", "--shard-size-mb", "2"]
    started = time.monotonic()
    assert run("pack", more, tmp_path / "undisturbed", *options)[0] == 0
    seconds = time.monotonic() - started
    expected = all_bytes(tmp_path / "undisturbed")

    def check():
        if Catalogue.open(tmp_path / "out").version == 2:
            assert {name: (tmp_path / "out" / name).read_bytes() for name in expected} == expected
            (tmp_path / "out/catalogue/000002.arrow").unlink()
        assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before

    command = [*COMMAND, "pack", str(more), str(tmp_path / "out"), *options]
    kill_at_random(command, num_kills, seconds, check)
    assert run("pack", more, tmp_path / "out", *options)[0] == 0
    assert all_bytes(tmp_path / "out") == expected


CASES = {
    "plain": [],
    "resized": ["--resize-shorter", "250"],
    "class order": ["--order", "class", "--resize", "280x200"],
    "deduplicated": ["--dedupe", "phash"],
}


@pytest.mark.parametrize(
    "case", ["plain", "resized", *(pytest.param(case, marks=pytest.mark.slow) for case in list(CASES)[2:])]
)
def test_a_killed_pack_goes_on_whatever_its_processes(tmp_path, case):
    source = write_images(tmp_path / "src", {"ant": 50, "bee": 50, "owl": 50}, size=(300, 300), kind="BMP")
    (source / "bee" / "rotten.jpg").write_text("no image")
    masked = sorted(path.relative_to(source) for path in source.rglob("*.bmp"))[::3]
    for path in masked:
        (tmp_path / "src/masks" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (300, 300), len(path.name)).save(tmp_path / "src/masks" / path)
    rows = [
        f"{path},{path.parent},{Path('masks') / path if path in masked else ''}"
        for path in sorted(path.relative_to(source) for path in source.glob("[abo]*/*"))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["file,class,mask", *rows, ""]))
    options = [
        "--table",
        str(tmp_path / "t.csv"),
        "--mask-column",
        "mask",
        "--shard-size-mb",
        "2",
        *CASES[case],
    ]
    assert run("pack", source, tmp_path / "expected", "--processes", "1", *options)[0] == 1
    expected = all_bytes(tmp_path / "expected")

    def is_there(pattern, number):
        return lambda: len(list((tmp_path / ".out.partial").glob(pattern))) >= number

    command = [*COMMAND, "pack", str(source), str(tmp_path / "out"), *options, "--processes"]
    kill_when([*command, "2"], is_there("*/finished/chunk-*.json", 1))
    kill_when([*command, "1"], is_there("*/finished/shard-*.json", 2))
    kill_when([*command, "3"], is_there("*/finished/shard-*.json", 4))
    assert not (tmp_path / "out").exists()
    code, out, err = run("pack", source, tmp_path / "out", *options, "--processes", "2", "--json")
    assert (code, json.loads(out)["num_bad"]) == (1, 1)
    assert json.loads(out)["num_reused"] >= 3 + 4
    assert "resumed: 3 of 3 pieces of stage 'checking' were there" in err
    assert f" of {json.loads(out)['num_shards']} pieces of stage 'packing' were there" in err
    assert all_bytes(tmp_path / "out") == expected
    assert sorted(os.listdir(tmp_path)) == ["expected", "out", "src", "t.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
def test_a_killed_worker_is_one_line_and_the_next_try_goes_on(tmp_path):
    source = write_images(tmp_path / "src", {"ant": 60, "bee": 60, "owl": 60}, size=(300, 300), kind="BMP")
    command = [*COMMAND, "pack", str(source), str(tmp_path / "out"), "--shard-size-mb", "1", "--processes"]
    process = subprocess.Popen([*command, "2"], stderr=subprocess.PIPE, text=True)
    # A piece is finished once its note is written: three chunks of images to check, and a shard.
    while len(list((tmp_path / ".out.partial").glob("*/finished/**/*.json"))) < 3 + 1:
        assert process.poll() is None
        time.sleep(0.002)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == (
        "error: a worker process was killed, perhaps for lack of memory (--processes 1 needs the least); run the same again "
        "to resume with the pieces that are finished\n"
    )
    code, out, _ = run("pack", source, tmp_path / "out", "--shard-size-mb", "1", "--json")
    assert code == 0
    assert json.loads(out)["num_reused"] >= 3 + 1


def test_a_killed_append_goes_on(tmp_path):
    first = write_images(tmp_path / "src", {"ant": 8}, size=(20, 20), kind="PNG")
    more = write_images(tmp_path / "more", {"bee": 40}, size=(300, 300), kind="BMP")
    for name in ("out", "expected"):
        assert run("pack", first, tmp_path / name)[0] == 0
    options = ["--append", "--shard-size-mb", "1"]
    assert run("pack", more, tmp_path / "expected", *options)[0] == 0
    shards = tmp_path / "out/.append.partial"
    kill_when(
        [*COMMAND, "pack", str(more), str(tmp_path / "out"), *options],
        lambda: len(list(shards.glob("*/out/shards/*.tar"))) >= 2,
    )
    assert Catalogue.open(tmp_path / "out").version == 1
    code, out, _ = run("pack", more, tmp_path / "out", *options, "--json")
    assert code == 0
    assert json.loads(out)["num_reused"] >= 3
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_two_packs_of_one_output_do_not_mix(tmp_path):
    source = write_images(tmp_path / "src", {"ant": 20, "bee": 20}, size=(300, 300), kind="BMP")
    command = [*COMMAND, "pack", str(source), str(tmp_path / "out"), "--shard-size-mb", "1"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 2], errors
    assert any("another process is writing there" in e or "is not an empty folder" in e for e in errors)
    assert run("inspect", tmp_path / "out", "--verify")[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "src"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """(packed, adopted): the digits from their files, and from shards that webdataset wrote."""
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("sets")
    scans = load_digits()
    (root / "wds").mkdir()
    with webdataset.ShardWriter(str(root / "wds/part-%04d.tar"), maxcount=70, verbose=0) as writer:
        for label in range(10):
            (root / "src" / str(label)).mkdir(parents=True)
            for member in np.flatnonzero(scans.target == label)[:16]:
                scan = Image.fromarray((scans.images[member] * (255 / 16)).astype(np.uint8))
                path = root / "src" / str(label) / f"{member}.png"
                scan.save(path)
                sample = {"png": path.read_bytes(), "json": {"label": label}}
                writer.write({"__key__": f"{label}/{member}", **sample})
    assert run("pack", root / "src", root / "packed")[0] == 0
    code, out, err = run("adopt", root / "wds/part-{0000..0002}.tar", root / "adopted", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["num_samples"], report["num_shards"], report["num_bad"]) == (160, 3, 0)
    return root / "packed", root / "adopted"


def train(dataset, out, **settings):
    """The losses of a run's steps; `settings` in place of those in SETTINGS, with `__` for the dot."""
    keys = {name.replace("__", "."): value for name, value in settings.items()}
    given = [setting for setting in SETTINGS if setting.partition("=")[0] not in keys]
    given += [f"{key}={value}" for key, value in keys.items()]
    code, _, err = run("train", f"data.dataset={dataset}", f"run.dir={out}", *given)
    assert code == 0, err[-2000:]
    return [line["train/loss"] for line in read_metrics(Path(out)) if "train/loss" in line]


def test_adopted_shards_train_to_the_loss_of_packed_ones(sets, tmp_path):
    losses = [train(dataset, tmp_path / dataset.name) for dataset in sets]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_shards_with_dalis_index_train_to_the_loss_of_packed_ones(tmp_path):
    """Members 000000.jpg and 000000.cls (digits), and next to each shard the index that DALI's `wds2idx` makes."""
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI has no wheel for this machine")
    from nvidia.dali import pipeline_def
    from wds2idx import IndexCreator

    draw = np.random.default_rng(7)
    photos, shards, indexes = [], [], []
    for shard in range(3):
        shards.append(str(tmp_path / "theirs" / f"train-{shard:06d}.tar"))
        Path(shards[-1]).parent.mkdir(exist_ok=True)
        with tarfile.open(shards[-1], "w", format=tarfile.GNU_FORMAT) as tar:
            for _ in range(40):
                buffer = io.BytesIO()
                pixels = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((24, 20)).save(buffer, "JPEG", quality=90)
                number, label = len(photos), len(photos) * 7 % 12
                photos.append((buffer.getvalue(), label))
                for extension, content in (("jpg", buffer.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        indexes.append(shards[-1].replace(".tar", ".idx"))
        with IndexCreator(shards[-1], indexes[-1], verbose=False) as index:
            index.create_index()
        assert Path(indexes[-1]).read_text().startswith("v1.2 40\njpg ")

    @pipeline_def(batch_size=120, num_threads=1, device_id=None)
    def read():
        return tuple(fn.readers.webdataset(paths=shards, index_paths=indexes, ext=["jpg", "cls"]))

    pipeline = read()
    pipeline.build()
    images, labels = pipeline.run()
    found = [(images.at(i).tobytes(), int(labels.at(i).tobytes())) for i in range(120)]
    assert found == photos

    rows = ["file,class"]
    for number, (content, label) in enumerate(photos):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / f"{number:06d}.jpg").write_bytes(content)
        rows.append(f"{number:06d}.jpg,{label}")
    (tmp_path / "t.csv").write_text("\n".join([*rows, ""]))
    code, _, err = run("pack", tmp_path / "src", tmp_path / "packed", "--table", tmp_path / "t.csv")
    assert code == 0, err
    code, _, err = run("adopt", tmp_path / "theirs", tmp_path / "adopted")
    assert code == 0, err
    settings = {
        "episode__per_epoch": 12,
        "data__channels": 3,
        "data__mean": "[0.5,0.5,0.5]",
        "data__std": "[0.5,0.5,0.5]",
    }
    packed = train(tmp_path / "packed", tmp_path / "run-packed", **settings)
    assert len(packed) == 12
    assert train(tmp_path / "adopted", tmp_path / "run-adopted", **settings) == packed


@pytest.mark.slow
def test_a_run_keeps_its_version_when_the_data_set_grows(sets, tmp_path):
    dataset, out = tmp_path / "out", tmp_path / "run"
    assert run("pack", sets[0].parent / "src", dataset)[0] == 0
    code, _, err = run("train", f"data.dataset={dataset}", f"run.dir={out}", *SETTINGS)
    assert code == 0, err[-2000:]
    assert "version: 1" in (out / "config.yaml").read_text()
    before = json.loads(run("evaluate", out, "--json")[1])
    assert (
        run(
            "pack",
            write_images(tmp_path / "more", {"3": 9, "new": 9}, size=(8, 8), kind="PNG"),
            dataset,
            "--append",
        )[0]
        == 0
    )
    assert run("resplit", dataset, "--seed", "9")[0] == 0
    assert json.loads(run("evaluate", out, "--json")[1]) == before
    code, _, err = run("train", "--resume", f"run.dir={out}", "training.epochs=2")
    assert code == 0, err[-2000:]
    assert len(read_metrics(out)) > 6


def test_adopt_says_what_it_left_out(sets, tmp_path):
    whole = (sets[1].parent / "wds/part-0000.tar").read_bytes()
    (tmp_path / "part.tar").write_bytes(whole[: len(whole) // 2])
    code, out, err = run("adopt", tmp_path / "part.tar", tmp_path / "out", "--json")
    assert (code, json.loads(out)["num_bad"]) == (1, 1)
    assert "left out 'part.tar': is cut" in err
    code, out, _ = run("adopt", tmp_path / "part.tar", tmp_path / "two", "--allow-bad")
    assert code == 0
    assert "catalogue version 1" in out
    code, out, err = run("adopt", tmp_path / "part-{0..3}.tar", tmp_path / "three")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_resplit_and_append_are_versions(sets, tmp_path):
    root = sets[0].parent
    run("pack", root / "src", tmp_path / "out")
    code, out, _ = run("resplit", tmp_path / "out", "--split", "classes", "--seed", "3", "--json")
    report = json.loads(out)
    assert (code, report["version"], report["num_samples"]) == (0, 2, 160)
    assert report["split_counts"] == {"train": 96, "val": 32, "test": 32}
    more = write_images(tmp_path / "more", {"8": 3, "9": 3}, size=(8, 8), kind="PNG")
    code, out, err = run("pack", more, tmp_path / "out", "--append", "--json")
    assert (code, json.loads(out)["version"]) == (0, 3), err
    code, out, _ = run("inspect", tmp_path / "out", "--verify", "--json")
    assert (code, json.loads(out)["num_samples"]) == (0, 166)
    code, out, err = run("pack", more, tmp_path / "out", "--append", "--split", "classes")
    assert (code, out) == (2, "")
    assert "leave --split classes out" in err
