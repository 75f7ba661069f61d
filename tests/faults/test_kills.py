"""SIGKILL at random moments, again and again: what is resumed ends as if nothing had happened.

Each case kills whole process groups, so that Ray's processes and trials die with their driver. FSL_DIST_KILLS says how many kills in
all (20 unless set), FSL_DIST_FAULT_SEED draws other moments. Packs and appends have tests of their own in test_data_writers.py.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import GREY_16_PX, PROGRAM, fsl_dist
from PIL import Image

import fsl_dist as library
from fsl_dist.training.checkpoint import TENSORS, CheckpointFolder
from fsl_dist.training.runlog import read_metrics
from index import IndexConfig, IndexWriter, open_index
from index.writing.build import build
from tune.records import SweepFolder

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(3 * 3600)]

SEED = int(os.environ.get("FSL_DIST_FAULT_SEED", "0"))
NUM_KILLS = int(os.environ.get("FSL_DIST_KILLS", "20"))
TRAIN = [
    *GREY_16_PX,
    "data.flip=false",
    "data.holdout_fraction=0.2",
    "backbone.name=conv4",
    "backbone.width=8",
    "method.kind=deep_knn",
    "mining.source=dataset",
    "training.epochs=40",
    "training.batch_size=16",
    "training.validate_every=5",
]


def share_of(part: float) -> int:
    """Kills of a case that gets this share of all."""
    return max(1, round(part * NUM_KILLS))


def kill_at_random(
    num_kills: int,
    command: Callable[[], Sequence[object]],
    check_and_clear: Callable[[], None],
    environment: dict[str, str],
    seconds: float,
) -> None:
    """Run a command, kill its process group at a random moment, and so on; whenever it comes to an end, check what it made.

    Args:
        num_kills: how often.
        command: what is run next: the command, or the one that resumes it.
        check_and_clear: looks at what is there after the command has ended, and makes way for another start.
        environment: of the processes.
        seconds: that the command takes when nothing disturbs it.
    """
    draw, num_killed, num_ended = random.Random(SEED), 0, 0
    while num_killed < num_kills:
        process = start(command(), environment)
        try:
            _, said = process.communicate(timeout=draw.uniform(0.25, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            num_killed += 1
        else:
            assert process.returncode == 0, said[-3000:]
            check_and_clear()
            num_ended += 1
            seconds *= 0.95
    _, said = start(command(), environment).communicate()
    check_and_clear()
    assert "Traceback" not in said
    print(f"{num_killed} kills, {num_ended + 1} times to the end: fsl-dist {command()[0]} {command()[1]}")


def start(command: Sequence[object], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(PROGRAM), *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.fixture
def environment(tmp_path: Path):
    """A temporary folder of the test's own; what killed processes leave in it is swept by the last one, which is not killed."""
    folder = Path(f"/tmp/fk{os.getpid()}{tmp_path.name[-4:]}")
    folder.mkdir()
    yield {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    left = [path.name for path in folder.iterdir() if path.name.startswith("fsl-")]
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    folder = CheckpointFolder(run, keep=1, owner=None).latest()
    assert folder is not None
    return torch.load(folder / TENSORS, weights_only=True)["network"]


@pytest.mark.parametrize("workers", [1, 2])
def test_trainings(digits: Path, tmp_path: Path, environment: dict[str, str], workers: int) -> None:
    settings = [*TRAIN, f"data.dataset={digits}", f"workers.num={workers}"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    started = time.monotonic()
    done = fsl_dist("train", *settings, f"run.dir={whole}")
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    wanted = tensors_of(whole)

    def check() -> None:
        found = tensors_of(run)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        assert losses(run) == losses(whole)
        assert library.doctor(run).is_sound
        shutil.rmtree(run)

    def command() -> list[object]:
        resume = ["--resume"] if (run / "config.yaml").is_file() else []
        return ["train", *settings, f"run.dir={run}", *resume]

    kill_at_random(share_of(0.25 if workers == 1 else 0.12), command, check, environment, seconds)


def losses(run: Path) -> dict[int, float]:
    """Step → loss; a step that was made again after a kill counts with its last line."""
    return {line["step"]: line["train/loss"] for line in read_metrics(run) if "train/loss" in line}


@pytest.mark.parametrize("kind", ["flat", "ivf_flat"])
def test_index_builds(tmp_path: Path, environment: dict[str, str], kind: str) -> None:
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((300_000, 64)).astype(np.float32)
    np.save(tmp_path / "X.npy", vectors)
    np.save(tmp_path / "Y.npy", rng.integers(0, 50, len(vectors)))
    out = tmp_path / "index"
    files = ["--vectors", tmp_path / "X.npy", "--labels", tmp_path / "Y.npy"]
    command = ["index", "build", out, *files, "shards=40", f"kind={kind}"]

    def check() -> None:
        index = open_index(out, verify=True)
        np.testing.assert_array_equal(index.vectors(0, len(vectors))[np.argsort(index.ids)], vectors)
        assert library.doctor(out).is_sound
        shutil.rmtree(out)

    started = time.monotonic()
    done = fsl_dist(*map(str, command))
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - started
    check()
    kill_at_random(share_of(0.15), lambda: command, check, environment, seconds)


def test_merges(tmp_path: Path, environment: dict[str, str]) -> None:
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((200_000, 32)).astype(np.float32)
    out = tmp_path / "index"
    build(out, vectors, rng.integers(0, 50, len(vectors)), config=IndexConfig(shards=30))
    added: dict[int, np.ndarray] = {}

    def add() -> None:
        more = rng.standard_normal((200, 32)).astype(np.float32)
        ids = IndexWriter(out).add(more, np.arange(200) % 50).ids
        added.update(zip(ids.tolist(), more, strict=True))

    def check() -> None:
        index = open_index(out, verify=True)
        assert len(index.ids) == len(vectors) + len(added)
        found = index.search(np.stack(list(added.values())), k=1)
        np.testing.assert_array_equal(found.ids[:, 0], list(added))
        add()

    add()
    started = time.monotonic()
    assert fsl_dist("index", "merge", str(out)).returncode == 0
    seconds = time.monotonic() - started
    check()
    kill_at_random(share_of(0.16), lambda: ["index", "merge", out], check, environment, seconds)
    assert library.doctor(out).is_sound


def test_sweeps(digits: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    whole, killed = write_sweep(tmp_path / "whole", digits), write_sweep(tmp_path / "killed", digits)
    started = time.monotonic()
    done = fsl_dist("sweep", "run", "--config", whole)
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - started
    folder, wanted = tmp_path / "killed" / "sweep", results_of(tmp_path / "whole" / "sweep")

    def check() -> None:
        assert results_of(folder) == wanted
        assert library.doctor(folder).is_sound
        shutil.rmtree(folder)

    def command() -> list[object]:
        if (folder / "sweep-config.yaml").is_file():
            return ["sweep", "resume", folder]
        return ["sweep", "run", "--config", killed]

    kill_at_random(share_of(0.1), command, check, environment, seconds)


def write_sweep(folder: Path, digits: Path) -> Path:
    base = {
        "data": {
            "dataset": str(digits),
            "channels": 1,
            "resize": "exact",
            "resize_size": 16,
            "image_size": 16,
            "mean": [0.5],
            "std": [0.5],
            "flip": False,
            "holdout_fraction": 0.25,
        },
        "backbone": {"name": "conv4", "width": 8},
        "method": {"kind": "cross_entropy"},
        "training": {"epochs": 15, "batch_size": 16},
    }
    folder.mkdir()
    space = {"training.lr": {"loguniform": [1e-4, 1e-2]}}
    sweep = {"base": base, "space": space, "trials": 6, "dir": str(folder / "sweep")}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder / "sweep.yaml"


def results_of(sweep: Path) -> dict[str, tuple[str, float | None]]:
    """Point → (state, value) of each trial."""
    return {
        json.dumps(trial.point, sort_keys=True): (trial.result.state, trial.result.value)
        for trial in SweepFolder(sweep).trials()
        if trial.result is not None
    }


def test_fits(digits: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    out = tmp_path / "fit"
    picture = tmp_path / "one.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture)

    def check() -> None:
        record = json.loads((out / "fit.json").read_text())
        assert record["chosen"]
        assert library.doctor(out).is_sound
        assert library.open_run(out).predict([picture]).predictions
        shutil.rmtree(out)

    def command() -> list[object]:
        resume = ["--resume"] if (out / "fit-config.yaml").is_file() else []
        return ["fit", digits, "--minutes", "0.75", "--out", out, "backbone.pretrained=false", *resume]

    kill_at_random(share_of(0.07), command, check, environment, 40.0)
