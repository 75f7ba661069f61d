"""`fit` on real digits: from a folder to a model, and after a kill."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from commands import PROGRAM
from sweep_processes import descendants, trial_actors

import fsl_dist
from cluster.cli import fsl_dist as program
from fsl_dist.config import load_run
from fsl_dist.training.splits import split_run
from index.base.errors import RequestError

pytestmark = pytest.mark.integration

SETTINGS = {
    "backbone.name": "conv4",
    "data.image_size": 16,
    "data.channels": 1,
    "data.mean": [0.5],
    "data.std": [0.5],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 scans of each of six digits, as class folders."""
    from PIL import Image
    from sklearn.datasets import load_digits

    scans, out = load_digits(), tmp_path_factory.mktemp("scans")
    for label in range(6):
        for member in np.flatnonzero(scans.target == label)[:50]:
            path = out / str(label) / f"{member}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray((scans.images[member] * (255 / 16)).astype(np.uint8)).save(path)
    return out


def test_a_folder_becomes_a_model(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit"
    lines: list[str] = []
    fit = fsl_dist.fit(folder, dir=out, minutes=0.25, settings=SETTINGS, progress=lines.append)
    record = fit.record
    # Whatever the machine's speed: test has chosen nothing, and the result is not below the frozen network on validation.
    chosen = fit.chosen
    assert chosen.test is not None
    assert chosen.test.n == 60
    assert chosen.test.acc > 0.8
    assert fit.run.dir == out / record.final_run
    assert {one.round for one in record.candidates} >= {0}
    assert [row[0] for row in fit.table()[1:] if row[0].startswith("*")] == [f"* {chosen.name}"]
    assert len(fit.dataframe()) == len(record.candidates)
    assert fit.report.is_file()
    assert fsl_dist.doctor(out).is_sound
    assert "Fit(" in repr(fit)
    assert "<table>" in fit._repr_html_()
    with fsl_dist.open_run(out) as run:
        images = sorted((folder / "3").glob("*.png"))[:8]
        assert sum(one.classes[0].name == "3" for one in run.predict(images)) >= 6
    # What has ended is returned as it is, by the command too.
    assert fsl_dist.fit(folder, dir=out, minutes=0.25, settings=SETTINGS, resume=True).record == record
    given = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    result = CliRunner().invoke(
        program, ["fit", str(folder), "--out", str(out), "--minutes", "0.25", "--resume", "--json", *given]
    )
    assert json.loads(result.stdout)["chosen"] == record.chosen
    with pytest.raises(RequestError, match="already contains a fit"):
        fsl_dist.fit(folder, dir=out, minutes=0.25, settings=SETTINGS)


@pytest.mark.slow
def test_a_final_run_takes_a_val_split_where_that_is_asked(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    fsl_dist.pack(folder, packed, fractions=(0.6, 0.2, 0.2), progress=False)
    data = fsl_dist.open_data(packed)
    num_train, num_val = len(data.select("train")), len(data.select("val"))
    for final, num in (("auto", num_train), (True, num_train + num_val)):
        out = tmp_path / f"fit-{final}"
        fit = fsl_dist.fit(packed, dir=out, minutes=1.5, settings=SETTINGS, final=final, progress=False)
        assert any(one.round > 0 for one in fit.record.candidates), fit.record.notes
        assert fit.chosen.round == -1, fit.record.notes
        assert (fit.chosen.validation is None) == (final is True)
        config = load_run(out / "final")
        assert len(split_run(data, config).train) == num
        with fsl_dist.open_run(out) as run:
            assert run.predict(sorted((folder / "3").glob("*.png"))[:1])


@pytest.mark.slow
def test_a_killed_fit_is_resumed(folder: Path, tmp_path: Path) -> None:
    """The driver is killed while the first round trains. All of the time is for rounds: a slow machine would have none otherwise."""
    out = tmp_path / "fit"
    given = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    asked = [str(folder), "--out", str(out), "--minutes", "3", "--no-final", "--resume", "--json", *given]
    command = [PROGRAM, "fit", *asked]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not list(out.glob("rounds/1/trials/*/result.json")):
            time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (out / "fit.json").exists()
    plan = (out / "plan.json").read_bytes()
    trials = {path: path.read_bytes() for path in out.glob("rounds/1/trials/*/result.json")}
    assert trials
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    record = json.loads(done.stdout)
    assert record["final_run"].startswith("rounds/")
    best = next(one for one in record["candidates"] if one["name"] == record["chosen"])
    assert best["validation"]["acc"] > 0.8
    assert (out / "plan.json").read_bytes() == plan
    assert {path: path.read_bytes() for path in trials} == trials


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["trial", "raylet"])
def test_a_fit_outlives_the_processes_of_ray(victim: str, folder: Path, tmp_path: Path) -> None:
    """A killed trial is tried again within the same command; without its raylet the command ends in one line, and goes on later."""
    out = tmp_path / "fit"
    given = [f"{key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    asked = [str(folder), "--out", str(out), "--minutes", "3", "--no-final", "--resume", "--json", *given]
    command = [PROGRAM, "fit", *asked]

    def victims(driver: int) -> list[int]:
        if victim == "trial":
            return trial_actors(driver)
        return [child for child, title in descendants(driver) if "/raylet/raylet " in title]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while process.poll() is None and not (
                list(out.glob("rounds/1/trials/*/metrics.jsonl")) and victims(process.pid)
            ):
                time.sleep(0.1)
            assert process.poll() is None
            os.kill(victims(process.pid)[0], signal.SIGKILL)
            printed, said = process.communicate(timeout=280)
        finally:
            process.kill()
    assert "Traceback" not in said
    plan = (out / "plan.json").read_bytes()
    if victim == "raylet":
        assert process.returncode == 1, said[-3000:]
        assert re.match(
            r"error: Ray's raylet \(process \d+\) on this machine has ended: ", said.splitlines()[-1]
        )
        assert not (out / "fit.json").exists()
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
        printed = done.stdout
    else:
        assert process.returncode == 0, said[-3000:]
    record = json.loads(printed)
    trained = [one for one in record["candidates"] if one["round"] > 0]
    assert trained
    assert all(one["validation"] is not None for one in trained), "no candidate was lost"
    best = next(one for one in record["candidates"] if one["name"] == record["chosen"])
    assert best["validation"]["acc"] > 0.8
    assert (out / "plan.json").read_bytes() == plan
