"""SIGTERM and Ctrl-C: what is kept, what is said, what is left behind, and that the resumed run is the undisturbed one."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import GREY_16_PX, PROGRAM

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


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(12_000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not come to that within two minutes")


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
