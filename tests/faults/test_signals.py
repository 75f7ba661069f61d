"""SIGTERM and Ctrl-C: what is kept, what is said, what is left behind, and that the resumed run is the undisturbed one."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import GREY_16_PX, PROGRAM
from sweep_processes import wait_for

from fsl_dist.training.checkpoint import TENSORS, CheckpointFolder
from fsl_dist.training.runlog import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.faults]

SETTINGS = [
    *GREY_16_PX,
    "data.flip=false",
    "backbone.name=conv4",
    "backbone.width=8",
    "training.epochs=4",
    "training.batch_size=16",
    "method.kind=cross_entropy",
    "data.holdout_fraction=0.2",
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A temporary folder of the test's own, in which nothing may be left. Short: Ray has sockets in it."""
    folder = Path(f"/tmp/fs{os.getpid()}{tmp_path.name[-6:]}")
    folder.mkdir()
    yield {**os.environ, "TMPDIR": str(folder)}
    left = [path.name for path in folder.iterdir() if path.name.startswith("fsl-")]
    for _ in range(3):
        subprocess.run(["rm", "-rf", str(folder)], check=False)
    assert left == []


def start(run: Path, environment: dict[str, str], *settings: str) -> subprocess.Popen[str]:
    command = [PROGRAM, "train", *SETTINGS, f"run.dir={run}", *settings]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it said on stderr, of its last line."""
    out, err = process.communicate(timeout=280)
    assert process.returncode == code, err[-3000:]
    assert "Traceback" not in err
    if code == 0:
        assert json.loads(out)["steps"] > 0
    return err.strip().splitlines()[-1]


def steps_logged(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = torch.load(folder / TENSORS, weights_only=True)["network"]
    assert isinstance(found, dict)
    return found


def assert_same_checkpoints(run: Path, other: Path) -> None:
    folders = CheckpointFolder(other, keep=1, owner=None).finished()
    assert [f.name for f in CheckpointFolder(run, keep=1, owner=None).finished()] == [f.name for f in folders]
    for folder in folders:
        found = tensors_of(run / "checkpoints" / folder.name)
        for name, wanted in tensors_of(folder).items():
            assert torch.equal(found[name], wanted), f"{folder.name}: {name}"


def descendants_of(pid: int) -> set[int]:
    """Processes below `pid`, while it lives."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def are_gone(processes: set[int]) -> bool:
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in processes):
            return True
        time.sleep(0.1)
    return False


def test_a_stopped_run_keeps_its_last_step_and_resumes_to_the_same_bytes(
    digits: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    data = f"data.dataset={digits}"
    whole = start(tmp_path / "whole", environment, data, "--json")
    run = tmp_path / "stopped"
    for number, step in ((signal.SIGTERM, 3), (signal.SIGINT, 14)):
        process = start(run, environment, data, *(["--resume"] if step > 3 else []))
        wait_for(lambda step=step: steps_logged(run) >= step, process)  # type: ignore[misc]
        process.send_signal(number)
        said = finish(process, 128 + number)
        latest = CheckpointFolder(run, keep=1, owner=None).latest()
        assert latest is not None
        assert int(latest.name[-8:]) == steps_logged(run) >= step
        assert said.startswith(f"stopped: {latest} is kept, after step {steps_logged(run)} (")
        assert f"--resume and run.dir={run} continues" in said
        assert not list(run.rglob(".staging-*")) + list(run.glob("index/*/staging/*"))
    finish(start(run, environment, data, "--resume", "--json"))
    finish(whole)
    assert_same_checkpoints(run, tmp_path / "whole")


@pytest.mark.slow
def test_ray_workers_stop_after_the_same_step_and_leave_nothing(
    digits: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    data = [f"data.dataset={digits}", "workers.num=2"]
    finish(start(tmp_path / "whole", environment, *data, "--json"))
    run = tmp_path / "stopped"
    process = start(run, environment, *data)
    wait_for(lambda: steps_logged(run) >= 3, process)
    children = descendants_of(process.pid)
    assert len(children) >= 3
    process.send_signal(signal.SIGTERM)
    said = finish(process, 143)
    latest = CheckpointFolder(run, keep=1, owner=None).latest()
    assert latest is not None
    assert said.startswith(f"stopped: {latest} is kept, after step {steps_logged(run)} (")
    assert are_gone(children)
    finish(start(run, environment, *data, "--resume", "--json"))
    assert_same_checkpoints(run, tmp_path / "whole")


SLOW_STEPS = """
import sys, time
from fsl_dist.training import loop
from cluster.cli import main
taken, number = loop.Trainer.take_step, 0

def slow(self, planned, images):
    global number
    number += 1
    if number == 3:
        print("waiting", file=sys.stderr, flush=True)
        {wait}
    return taken(self, planned, images)

loop.Trainer.take_step = slow
main()
"""
SLEEPS = "time.sleep(60)"


def start_slow(wait: str, run: Path, environment: dict[str, str], *settings: str) -> subprocess.Popen[str]:
    """A run whose third step takes a minute; returns once it is under way."""
    command = [PROGRAM.with_name("python"), "-c", SLOW_STEPS.format(wait=wait)]
    process = subprocess.Popen(
        [*command, "train", *SETTINGS, f"run.dir={run}", "training.checkpoint_steps=1", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    while "waiting" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.3)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_step_that_takes_longer_than_the_grace_is_left_for_the_last_checkpoint(
    digits: Path, tmp_path: Path, environment: dict[str, str], number: int
) -> None:
    run = tmp_path / "run"
    more = [f"data.dataset={digits}", *(["training.grace_s=1"] if number == signal.SIGTERM else [])]
    process = start_slow(SLEEPS, run, environment, *more)
    began = time.monotonic()
    process.send_signal(number)
    if number == signal.SIGINT:  # a second Ctrl-C ends it at once
        time.sleep(0.8)
        process.send_signal(number)
    said = finish(process, 128 + number)
    assert time.monotonic() - began < 20
    assert said.startswith(f"stopped: {run}/checkpoints/step-00000002 is kept, after step 2 (")


@pytest.mark.slow
def test_sigterm_twice_is_one_request(digits: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """A process group and its leader both pass it on."""
    run = tmp_path / "run"
    process = start_slow("time.sleep(2)", run, environment, f"data.dataset={digits}")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    said = finish(process, 143)
    assert said.startswith(f"stopped: {run}/checkpoints/step-00000003 is kept, after step 3 (")


@pytest.mark.slow
def test_resume_from_an_earlier_checkpoint_by_its_name(
    digits: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    run = tmp_path / "run"
    data = [f"data.dataset={digits}", "training.checkpoint_steps=2", "training.keep_checkpoints=99"]
    finish(start(run, environment, *data, "--json"))
    wanted = tensors_of(CheckpointFolder(run, keep=1, owner=None).finished()[-1])
    said = finish(start(run, environment, *data, "--resume", "--from", "step-5"), 2)
    assert said.startswith(f"error: --from 5 is not a checkpoint of {run}; existing ones: 0, 2, 4, 6")
    assert "is not a checkpoint" in finish(start(run, environment, "--resume", "--from", "best"), 2)
    assert finish(start(run, environment, *data, "--from", "step-4"), 2).endswith("it needs --resume")
    finish(start(run, environment, *data, "--resume", "--from", "step-4", "--json"))
    found = tensors_of(CheckpointFolder(run, keep=1, owner=None).finished()[-1])
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
