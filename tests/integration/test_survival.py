"""Killed for real: a run, the driver of Ray workers, a process that comes back after another took its run."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import GREY_16_PX, PROGRAM

from fsl_dist.errors import StaleOwnerError
from fsl_dist.training.runlog import read_metrics
from index.base.files import Owner

pytestmark = pytest.mark.integration


SETTINGS = [
    *GREY_16_PX,
    "data.flip=false",
    "backbone.name=conv4",
    "backbone.width=16",
    "training.patience=0",
    "training.epochs=4",
    "training.lr=1e-3",
    "training.checkpoint_steps=16",
    "method.kind=pcn",
    "method.clusters=3",
    "method.temperature=1.0",
    "evaluation.delta_tau=[0]",
    "episode.n_way=8",
    "episode.k_shot=6",
    "episode.n_query=4",
    "episode.per_step=2",
    "episode.per_epoch=24",
]
NUM_STEPS = 48


def start(run: Path, *extra: str) -> subprocess.Popen[str]:
    """Start `fsl-dist train` on `run`."""
    command = [str(PROGRAM), "train", *SETTINGS, f"run.dir={run}", *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    """Wait for a run to end well; returns its summary."""
    out, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors[-3000:]
    summary: dict[str, object] = json.loads(out)
    return summary


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


def kill_after(run: Path, step: int, process: subprocess.Popen[str]) -> dict[int, float]:
    """SIGKILL the process (none of its children) once `step` is logged; returns the losses logged by then."""
    try:
        wait_for_step(run, step, process)
    finally:
        process.kill()
        process.communicate()
    return losses_of(run)


def files_of(run: Path) -> dict[Path, int]:
    """When each file of a run was last written, TensorBoard's own aside."""
    files = (path for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in files}


def assert_same_losses(found: dict[int, float], wanted: dict[int, float]) -> None:
    steps = sorted(wanted)
    np.testing.assert_allclose([found[step] for step in steps], [wanted[step] for step in steps], rtol=1e-6)


def test_a_killed_run_goes_on_as_if_nothing_had_been(digits: Path, tmp_path: Path) -> None:
    data = f"data.dataset={digits}"
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    whole = start(undisturbed, data, "--json")
    # Step 30 lies inside the third epoch, between the checkpoints of steps 16 and 32.
    kill_after(killed, 30, start(killed, data))
    assert not (killed / "checkpoints" / f"step-{NUM_STEPS:08d}").exists()
    assert finish(start(killed, data, "--json", "--resume"))["steps"] == NUM_STEPS
    finish(whole)
    assert sorted(losses_of(killed)) == list(range(1, NUM_STEPS + 1))
    assert_same_losses(losses_of(killed), losses_of(undisturbed))


def test_a_killed_driver_of_ray_workers_costs_a_restart_not_a_result(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = [f"data.dataset={digits}", "workers.num=2"]
    before = kill_after(run, 28, start(run, *data))
    assert finish(start(run, *data, "--json", "--resume"))["steps"] == NUM_STEPS
    after = losses_of(run)
    assert sorted(after) == list(range(1, NUM_STEPS + 1))
    # What the killed run had logged beyond its checkpoint, the resumed one computed again.
    assert_same_losses(after, before)
    with pytest.raises(StaleOwnerError, match="stops writing"):
        Owner(run, 1).check()


def test_a_process_that_lost_its_run_writes_no_more(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = f"data.dataset={digits}"
    first = start(run, data)
    try:
        wait_for_step(run, 10, first)
        os.kill(first.pid, signal.SIGSTOP)
        finish(start(run, data, "--resume", "--json"))
        assert max(losses_of(run)) == NUM_STEPS
        left = files_of(run)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 1, errors
    assert "this process holds claim 1 and stops writing" in errors
    assert "Traceback" not in errors
    assert files_of(run) == left


def workers_of(driver: int) -> list[int]:
    """Process ids of the Ray Train workers among the driver's descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])

    def descends(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    def is_worker(pid: int) -> bool:
        try:
            return b"RayTrainWorker" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
        except OSError:
            return False

    return [pid for pid in parents if descends(pid) and is_worker(pid)]


@pytest.mark.slow
def test_a_killed_worker_costs_a_restart_not_a_result(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    driver = start(run, f"data.dataset={digits}", "workers.num=2", "--json")
    wait_for_step(run, 20, driver)
    before = losses_of(run)
    workers = workers_of(driver.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert finish(driver)["steps"] == NUM_STEPS
    assert_same_losses(losses_of(run), before)
    assert sorted(losses_of(run)) == list(range(1, NUM_STEPS + 1))
    assert len(list((run / "owner").iterdir())) == 2


@pytest.mark.slow
def test_a_killed_and_resumed_ray_run_is_one_never_killed(digits: Path, tmp_path: Path) -> None:
    data = [f"data.dataset={digits}", "workers.num=2"]
    finish(start(tmp_path / "undisturbed", *data, "--json"))
    killed = tmp_path / "killed"
    kill_after(killed, 28, start(killed, *data))
    finish(start(killed, *data, "--json", "--resume"))
    assert sorted(losses_of(killed)) == list(range(1, NUM_STEPS + 1))
    assert_same_losses(losses_of(killed), losses_of(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_a_run_restarted_with_another_number_of_workers_takes_the_same_steps(
    digits: Path, tmp_path: Path
) -> None:
    # Batch statistics would depend on the number of workers.
    settings = [f"data.dataset={digits}", "backbone.batch_norm=frozen"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(undisturbed, *settings, "--json"))
    kill_after(killed, 28, start(killed, *settings, "workers.num=2"))
    summary = finish(start(killed, *settings, "workers.num=1", "--resume", "--json"))
    assert summary["steps"] == NUM_STEPS
    assert summary["images_seen"] == NUM_STEPS * 2 * 8 * (6 + 4)
    found, wanted = losses_of(killed), losses_of(undisturbed)
    assert sorted(found) == list(range(1, NUM_STEPS + 1))
    # The sums of two workers round otherwise than those of one.
    np.testing.assert_allclose(
        [found[step] for step in sorted(found)], [wanted[step] for step in sorted(found)], rtol=1e-4
    )
