"""Disks that are full or read-only, as real small file systems: one line, and nothing lost of what was there."""

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import GREY_16_PX, PROGRAM
from dataset_files import write_images
from free_ports import free_port

import fsl_dist
from fsl_dist.errors import RequestError
from fsl_dist.training.checkpoint import CheckpointFolder, read_checkpoint
from fsl_dist.training.runlog import read_metrics
from index import open_index
from index.base.object_cache import working_folder
from index.base.settings import parse_overrides
from index.config import IndexConfig
from index.writing.build import build as build_index

pytestmark = [pytest.mark.integration, pytest.mark.faults]

SETTINGS = [
    *GREY_16_PX,
    "data.decoder=torchvision",
    "backbone.name=conv4",
    "backbone.width=48",
    "training.epochs=3",
    "training.batch_size=30",
    "training.patience=0",
    "training.checkpoint_steps=1",
    "training.keep_checkpoints=99",
    "method.kind=cross_entropy",
    "run.trackers=[]",
]

NUM_DISKS = int(os.environ.get("FSL_DIST_DISKS", "6"))
SEED = int(os.environ.get("FSL_DIST_FAULT_SEED", "0"))

Disk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Run a command line with a file system of its own at `folder`, which is copied to tmp_path/kept before it is gone.

    Skipped where nothing may be mounted.
    """
    folder = tmp_path / "disk"
    folder.mkdir()

    def run(mount: str, *arguments: str | Path, first: str = "true") -> tuple[int, str, str]:
        inside = f'{mount} && {first} && {{ "$@"; code=$?; cp -r {folder} {tmp_path}/kept; exit $code; }}'
        command = ["unshare", "-m", "sh", "-c", inside, "sh", PROGRAM, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def of_size(folder: Path, size: str) -> str:
    return f"mount -t tmpfs -o size={size} none {folder}"


def test_a_checkpoint_that_finds_no_room_costs_no_other(digits: Path, tmp_path: Path, disk: Disk) -> None:
    run = tmp_path / "disk" / "run"
    code, _, err = disk(
        of_size(tmp_path / "disk", "3m"), "train", *SETTINGS, f"data.dataset={digits}", f"run.dir={run}"
    )
    assert code == 1
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    kept = CheckpointFolder(tmp_path / "kept" / "run", keep=1, owner=None)
    latest = kept.latest()
    assert latest is not None
    following = f"step-{int(latest.name[-8:]) + 1:08d}"
    assert f"the checkpoint {run}/checkpoints/{following} cannot be written: No space left on device" in line
    assert f"{run}/checkpoints/{latest.name} is kept (free some space, then --resume continues)" in line
    import torch

    for folder in kept.finished():
        read_checkpoint(folder, torch.device("cpu"))
    assert not list(kept.folder.glob(".*"))


def test_a_line_of_metrics_that_finds_no_room_leaves_whole_lines(
    digits: Path, tmp_path: Path, disk: Disk
) -> None:
    run = tmp_path / "disk" / "run"
    filled = f"mkdir {run} && head -c 500000 /dev/zero > {run}/filler"
    some = [s for s in SETTINGS if not any(word in s for word in ("checkpoint_steps", "epochs", "width"))]
    code, _, err = disk(
        of_size(tmp_path / "disk", "520k"),
        "train", *some, "training.epochs=1000", "backbone.width=4", f"data.dataset={digits}", f"run.dir={run}",
        "training.checkpoint_steps=9999",
        first=filled,
    )  # fmt: skip
    assert code == 1
    assert f"error: {run}/metrics.jsonl cannot be written: No space left on device; its lines" in err
    assert (tmp_path / "kept" / "run" / "metrics.jsonl").read_bytes().endswith(b"\n")
    steps = [line["step"] for line in read_metrics(tmp_path / "kept" / "run")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 10


def test_an_index_build_that_finds_no_room_leaves_the_version_before(tmp_path: Path, disk: Disk) -> None:
    rng = np.random.default_rng(0)
    for name, num in (("small", 1000), ("large", 30_000)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((num, 32)).astype(np.float32))
        np.save(tmp_path / f"{name}-labels.npy", rng.integers(0, 9, num))

    def build(name: str) -> list[str]:
        return [
            "--vectors",
            f"{tmp_path}/{name}.npy",
            "--labels",
            f"{tmp_path}/{name}-labels.npy",
            "shards=4",
        ]

    out = tmp_path / "disk" / "index"
    first = " ".join(map(str, [PROGRAM, "index", "build", out, *build("small")]))
    code, _, err = disk(
        of_size(tmp_path / "disk", "2m"), "index", "build", out, *build("large"), first=f"{first} >&2"
    )
    assert code == 1
    assert err.splitlines()[-1].startswith(f"error: building {out} stopped: No space left on device (")
    index = open_index(tmp_path / "kept" / "index", verify=True)
    assert index.num_vectors == 1000


def test_a_pack_that_finds_no_room_says_so(tmp_path: Path, disk: Disk) -> None:
    source = write_images(tmp_path / "images", {"a": 300, "b": 300}, size=(64, 64))
    code, _, err = disk(of_size(tmp_path / "disk", "1m"), "pack", source, tmp_path / "disk" / "data")
    assert code == 1
    assert "No space left on device" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "size", [pytest.param("8k", marks=pytest.mark.slow), "64k", pytest.param("600k", marks=pytest.mark.slow)]
)
def test_copies_of_a_bucket_s_index_that_find_no_room_are_one_line(
    size: str, s3: str, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6000, 32)).astype(np.float32)
    build_index(working_folder(s3), vectors, np.arange(6000) % 9, config=IndexConfig(shards=3))
    np.save(tmp_path / "q.npy", vectors[:2])
    cache = tmp_path / "disk" / "cache"
    monkeypatch.setenv("FSL_DIST_CACHE", str(cache))
    search = [
        "index",
        "search",
        s3,
        "--k",
        "1",
        "--queries",
        tmp_path / "q.npy",
        "--out",
        tmp_path / "found.npz",
    ]
    code, _, err = disk(of_size(tmp_path / "disk", size), *search)
    assert code == 1, err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "No space left on device" in line
    assert not list((tmp_path / "kept").rglob("*.tmp"))
    # A service looks first, and fetches nothing that does not fit.
    serve = ["index", "serve", s3, "--cache-dir", cache, "--port", str(free_port())]
    (tmp_path / "kept").rename(tmp_path / "kept-before")
    code, _, err = disk(of_size(tmp_path / "disk", size), *serve)
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == (1 if "No space left on device" in line else 2)
    assert "No space left on device" in line or "does not fit on the disk of" in line
    assert size == "8k" or not list((tmp_path / "kept").rglob("*.npy"))


@pytest.mark.slow
def test_a_read_only_run_is_evaluated_and_used_without_its_cache(
    digits: Path, tmp_path: Path, disk: Disk
) -> None:
    run = tmp_path / "disk" / "run"
    small = [s for s in SETTINGS if "epochs" not in s]
    command = [PROGRAM, "train", *small, "training.epochs=1", f"data.dataset={digits}", f"run.dir={run}"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    before = sorted(path for path in run.rglob("*"))
    image = write_images(tmp_path / "image", {"a": 1}, size=(16, 16)) / "a"
    read_only = f"mount --bind {run} {run} && mount -o remount,ro,bind {run}"
    code, out, err = disk(read_only, "evaluate", run, "--json")
    assert code == 0, err
    scores = json.loads(out)["metrics"]
    assert err.count("is not writable: results that are computed here are not kept") == 1
    code, out, _ = disk(read_only, "predict", run, next(image.iterdir()), "--json")
    assert code == 0
    code, _, err = disk(read_only, "explain", run, next(image.iterdir()), "--out", tmp_path / "page")
    assert code == 0, err
    assert sorted(path for path in run.rglob("*")) == before
    done = subprocess.run([PROGRAM, "evaluate", run, "--json"], capture_output=True, text=True, timeout=200)
    assert json.loads(done.stdout)["metrics"] == scores


@pytest.mark.slow
@pytest.mark.parametrize("number", range(NUM_DISKS))
def test_disks_of_any_size_end_a_command_in_one_line(
    digits: Path, tmp_path: Path, disk: Disk, number: int
) -> None:
    """Six commands in turn on a disk of a random size: done, or one line, and what is there is sound."""
    draw = random.Random(1000 * SEED + number)
    out = tmp_path / "disk" / "out"
    most_kb, command = on_a_small_disk(number % 6, digits, tmp_path, out)
    size_kb = int(draw.uniform(0.02, 0.9) * most_kb)
    code, _, err = disk(of_size(tmp_path / "disk", f"{size_kb}k"), *command)
    print(f"{command[0]} on {size_kb} kB: exit {code}")
    if code:
        assert code == 1, err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, err
        assert "No space left on device" in err
    kept = tmp_path / "kept" / "out"
    if kept.exists():
        try:
            found = fsl_dist.doctor(kept)
        except RequestError:
            assert code  # it is none of what a command finishes
        else:
            assert found.is_sound, str(found)


def on_a_small_disk(kind: int, digits: Path, tmp_path: Path, out: Path) -> tuple[int, list[str | Path]]:
    """(kB that the command needs, about, and the command)."""
    data = f"data.dataset={digits}"
    if kind == 0:
        return 9000, ["train", *SETTINGS, data, f"run.dir={out}"]
    if kind == 1:
        source = write_images(tmp_path / "images", {"a": 300, "b": 300}, size=(64, 64))
        return 9000, ["pack", source, out]
    if kind in (2, 3):
        rng = np.random.default_rng(0)
        np.save(tmp_path / "X.npy", rng.standard_normal((30_000, 32)).astype(np.float32))
        np.save(tmp_path / "Y.npy", rng.integers(0, 9, 30_000))
        files = ["--vectors", tmp_path / "X.npy", "--labels", tmp_path / "Y.npy"]
        return 5000 * (kind - 1), ["index", "build", out, *files, f"kind={('flat', 'ivf_flat')[kind - 2]}"]
    if kind == 4:
        small = [one for one in SETTINGS if not one.startswith(("run.", "training.patience"))]
        small.append("data.holdout_fraction=0.25")
        space = {"training.lr": {"loguniform": [1e-4, 1e-2]}}
        sweep = {"base": parse_overrides([*small, data]), "space": space, "trials": 3, "dir": str(out)}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        return 20_000, ["sweep", "run", "--config", tmp_path / "sweep.yaml"]
    return 6000, ["fit", digits, "--minutes", "0.5", "--out", out, "backbone.pretrained=false"]
