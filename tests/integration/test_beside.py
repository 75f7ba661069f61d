"""Mining concurrently with training: the same run as inline with the same lag, also after it was killed."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import GREY_16_PX, PROGRAM

from fsl_dist.training.checkpoint import FACTS
from fsl_dist.training.runlog import read_metrics

pytestmark = pytest.mark.integration


# 120 training images, 4 anchors a step: 30 steps per epoch.
SETTINGS = [
    *GREY_16_PX,
    "data.flip=false",
    "backbone.name=conv4",
    "backbone.width=16",
    "method.kind=deep_knn",
    "method.k_same=3",
    "method.m_other=4",
    "mining.source=dataset",
    "mining.refresh_steps=15",
    "mining.refresh_lag=6",
    "training.batch_size=32",
    "training.patience=0",
    "training.epochs=2",
    "training.optimizer=sgd",
    "training.lr=1e-2",
    "training.checkpoint_steps=9",
]
NUM_STEPS = 60


def start(run: Path, data: Path, *extra: str) -> subprocess.Popen[str]:
    command = [str(PROGRAM), "train", *SETTINGS, f"data.dataset={data}", f"run.dir={run}", "--json", *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors[-3000:]
    summary: dict[str, object] = json.loads(out)
    return summary


def series_of(run: Path, name: str) -> list[float]:
    """A metric of every step that has it, in order of steps."""
    lines = {line["step"]: line[name] for line in read_metrics(run) if name in line}
    return [lines[step] for step in sorted(lines)]


def checkpoint_with_a_refresh_under_way(run: Path) -> bool:
    """Whether the newest checkpoint names a table that has yet to take effect."""
    facts = sorted((run / "checkpoints").glob(f"step-*/{FACTS}"))
    return bool(facts) and "pending" in json.loads(facts[-1].read_text())["method"]


@pytest.mark.slow
def test_beside_is_inline_with_the_same_lag_and_a_kill_changes_nothing(digits: Path, tmp_path: Path) -> None:
    inline, killed = tmp_path / "inline", tmp_path / "killed"
    assert finish(start(inline, digits))["steps"] == NUM_STEPS
    # Tables start at steps 0, 15, 30, 45; all but the first take effect 6 steps later.
    ages = series_of(inline, "mining/staleness_steps")
    assert ages == [*range(21), *range(6, 21), *range(6, 21), *range(6, 15)]

    first = start(killed, digits, "mining.run=beside", "mining.actors=2")
    try:
        # The checkpoint of step 18 lies between the start of step 15's table and its taking effect at 21.
        for _ in range(20_000):
            if checkpoint_with_a_refresh_under_way(killed):
                break
            assert first.poll() is None, first.communicate()
            time.sleep(0.005)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    # One actor where there were two: another division of the work, the same table.
    finish(start(killed, digits, "--resume", "mining.actors=1"))
    for name in ("train/loss", "mining/staleness_steps"):
        np.testing.assert_allclose(series_of(killed, name), series_of(inline, name), rtol=1e-5)
    assert len(series_of(killed, "train/loss")) == NUM_STEPS
    assert len(list((killed / "mining").iterdir())) <= 3
