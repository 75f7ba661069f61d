"""SIGTERM and Ctrl-C in sweeps, index builds and packs: exit codes, one line, what is kept, what is left behind."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import PROGRAM
from dataset_files import write_images
from sweep_processes import descendants, wait_for

from fsl_dist.training.checkpoint import CheckpointFolder
from index import open_index
from index.base.scratch import scratch_folder, sweep_scratch
from tune.records import SweepFolder

pytestmark = [pytest.mark.integration, pytest.mark.faults]

BASE = {
    "data": {
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
    "training": {"epochs": 400, "patience": 400, "batch_size": 8, "validate_every": 400},
}


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A temporary folder of the test's own, in which nothing may be left. Short: Ray has sockets in it."""
    folder = Path(f"/tmp/fw{os.getpid()}{tmp_path.name[-6:]}")
    folder.mkdir()
    yield {**os.environ, "TMPDIR": str(folder)}
    left = [path.name for path in folder.iterdir() if path.name.startswith("fsl-")]
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def start(environment: dict[str, str], *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen[str], code: int) -> str:
    """What it said on stderr, of its last line."""
    _, err = process.communicate(timeout=280)
    assert process.returncode == code, err[-3000:]
    assert "Traceback" not in err
    return err.strip().splitlines()[-1] if err.strip() else ""


def are_gone(processes: list[int]) -> bool:
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_stops_its_trials_with_checkpoints(
    digits: Path, tmp_path: Path, environment: dict[str, str], workers: int
) -> None:
    sweep = tmp_path / "sweep"
    base = {**BASE, "data": {**BASE["data"], "dataset": str(digits)}, "workers": {"num": workers}}
    settings = {"base": base, "space": {"training.lr": {"loguniform": [1e-4, 1e-3]}}, "dir": str(sweep)}
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump({**settings, "trials": 3, "include_base": False}))
    driver = start(environment, "sweep", "run", "--config", config)
    wait_for(lambda: any(sweep.glob("trials/*/metrics.jsonl")), driver)
    time.sleep(1)
    children = [pid for pid, _ in descendants(driver.pid)]
    driver.send_signal(signal.SIGTERM)
    said = finish(driver, 143)
    assert said.startswith(f"stopped: 0 of 3 trials of {sweep} have ended, and running ones keep")
    assert said.endswith("--resume continues)")
    assert are_gone(children)
    begun = [trial for trial in SweepFolder(sweep).trials() if (trial.folder / "metrics.jsonl").exists()]
    assert begun
    kept = [CheckpointFolder(trial.folder, keep=1, owner=None).latest() for trial in begun]
    assert any(folder is not None and folder.name > "step-00000000" for folder in kept)
    assert all(trial.result is None for trial in SweepFolder(sweep).trials())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_index_build_says_what_it_keeps_and_resumes(
    tmp_path: Path, environment: dict[str, str], number: int
) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((60_000, 32)).astype(np.float32)
    np.save(tmp_path / "X.npy", vectors)
    np.save(tmp_path / "Y.npy", rng.integers(0, 50, 60_000))
    out = tmp_path / "index"
    command = [
        "index",
        "build",
        out,
        "--vectors",
        tmp_path / "X.npy",
        "--labels",
        tmp_path / "Y.npy",
        "shards=60",
    ]
    build = start(environment, *command)
    wait_for(lambda: any(out.glob("staging/*/finished/shard-*")), build)
    build.send_signal(number)
    said = finish(build, 128 + number)
    assert said.startswith("stopped in stage 'write': ")
    assert "of its 60 pieces are finished and kept in" in said
    again = start(environment, *command)
    _, err = again.communicate(timeout=200)
    assert again.returncode == 0
    assert "resumed: " in err
    index = open_index(out, verify=True)
    np.testing.assert_array_equal(index.vectors(0, 60_000)[np.argsort(index.ids)], vectors)


@pytest.mark.slow
def test_a_pack_says_what_it_keeps_and_resumes(tmp_path: Path, environment: dict[str, str]) -> None:
    source = write_images(tmp_path / "images", {"a": 1500, "b": 1500}, size=(64, 64))
    out = tmp_path / "data"
    pack = start(environment, "pack", source, out, "--processes", "2", "--shard-size-mb", "1")
    wait_for(lambda: len(list(tmp_path.rglob("finished/*.json"))) > 0, pack)
    children = [pid for pid, _ in descendants(pack.pid)]
    pack.send_signal(signal.SIGTERM)
    said = finish(pack, 143)
    assert said.startswith("stopped in stage '")
    assert are_gone(children)
    finish(start(environment, "pack", source, out, "--processes", "2", "--shard-size-mb", "1"), 0)


def test_scratch_folders_of_killed_processes_are_swept_and_of_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = (
        "from index.base.scratch import scratch_folder; import time\n"
        "with scratch_folder('fsl-x-') as f:\n    (f / 'big').mkdir(); print(f, flush=True); time.sleep(99)"
    )
    command = [PROGRAM.with_name("python"), "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, living = (Path(process.stdout.readline().strip()) for process in processes)  # type: ignore[union-attr]
    processes[0].kill()
    processes[0].communicate()
    try:
        with scratch_folder("fsl-y-") as own:  # whatever the other command was
            assert not killed.exists()
            assert own.stat().st_mode & 0o777 == 0o700
            assert sweep_scratch("fsl-") == []
        assert not own.exists()
        assert living.exists()
    finally:
        processes[1].kill()
        processes[1].communicate()
    assert sweep_scratch("fsl-x-") == [living]
