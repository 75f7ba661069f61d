"""Killed for real: the driver of a Ray run by SIGKILL, a process that comes back after another took its run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fsl_dist.errors import StaleOwnerError
from fsl_dist.training.runlog import read_metrics
from index.storage import Owner

pytestmark = pytest.mark.integration

PROGRAM = Path(sys.executable).with_name("fsl-dist")
WORKER = Path(__file__).parents[1] / "helpers" / "train_worker.py"

SETTINGS = [
    "data.channels=1",
    "data.resize=exact",
    "data.resize_size=16",
    "data.image_size=16",
    "data.mean=[0.5]",
    "data.std=[0.5]",
    "data.flip=false",
    "backbone.name=conv4",
    "backbone.width=16",
    "training.patience=0",
    "training.epochs=5",
    "training.lr=1e-3",
    "method.kind=pcn",
    "method.clusters=3",
    "method.temperature=1.0",
    "evaluation.delta_tau=[0]",
    "episode.n_way=8",
    "episode.k_shot=6",
    "episode.n_query=4",
    "episode.per_step=2",
    "episode.per_epoch=24",
    "training.checkpoint_steps=8",
]
NUM_STEPS = 60


def losses_of(run: Path) -> dict[int, float]:
    """Loss by step."""
    return {line["step"]: line["train/loss"] for line in read_metrics(run) if "train/loss" in line}


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Return as soon as the run has logged `step`."""
    for _ in range(12_000):
        if max(losses_of(run), default=0) >= step:
            return
        assert process.poll() is None, f"the run ended before step {step}: {process.communicate()}"
        time.sleep(0.01)
    raise AssertionError(f"no step {step} within two minutes")


def test_a_killed_driver_costs_a_restart_not_a_result(digits: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, f"data.dataset={digits}", "workers.num=2"]
    # Never killed: the same two workers without Ray, which is nothing but the launcher.
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    case = {"task": "train", "settings": [*settings, f"run.dir={undisturbed}"]}
    (tmp_path / "cases.json").write_text(json.dumps({"train": case}))
    command = [sys.executable, str(WORKER), str(tmp_path / "cases.json")]
    workers = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "rendezvous")]) for rank in range(2)
    ]
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    wanted = losses_of(undisturbed)
    assert sorted(wanted) == list(range(1, NUM_STEPS + 1))

    command = [str(PROGRAM), "train", *settings, f"run.dir={killed}"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_step(killed, 19, driver)
    finally:
        driver.kill()
        driver.communicate()
    written = sorted(folder.name for folder in (killed / "checkpoints").glob("step-*"))
    assert written[-1] < f"step-{NUM_STEPS:08d}"

    resumed = subprocess.run(
        [str(PROGRAM), "train", "--resume", "--json", *settings, f"run.dir={killed}"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert json.loads(resumed.stdout)["steps"] == NUM_STEPS
    found = losses_of(killed)
    assert sorted(found) == sorted(wanted)
    np.testing.assert_allclose(
        [found[s] for s in sorted(found)], [wanted[s] for s in sorted(wanted)], rtol=1e-6
    )
    with pytest.raises(StaleOwnerError, match="writes no more"):
        Owner(killed, 1).check()


def test_a_process_that_lost_its_run_writes_no_more(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*SETTINGS, f"data.dataset={digits}", f"run.dir={run}"]
    first = subprocess.Popen(
        [str(PROGRAM), "train", *settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for_step(run, 10, first)
        os.kill(first.pid, signal.SIGSTOP)
        second = subprocess.run(
            [str(PROGRAM), "train", "--resume", *settings], capture_output=True, text=True, timeout=280
        )
        assert second.returncode == 0, second.stderr[-3000:]
        before = {
            path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if "tensorboard" not in str(path)
        }
        assert max(losses_of(run)) == NUM_STEPS
    finally:
        os.kill(first.pid, signal.SIGCONT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 1, errors
    assert "this process holds claim 1 and writes no more" in errors
    assert "Traceback" not in errors
    after = {
        path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if "tensorboard" not in str(path)
    }
    # Folders it was about to stage in may have come and gone; every file is as the second process left it.
    assert {path: t for path, t in after.items() if path.is_file()} == {
        path: t for path, t in before.items() if path.is_file()
    }
