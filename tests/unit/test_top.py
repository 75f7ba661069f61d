"""`fsl-dist top`: what the progress lines of logs say, and jobs of this machine that run, wait or have ended."""

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import fsl_dist
from cluster.jobs import local
from cluster.jobs.local import FOLDER_VARIABLE
from cluster.jobs.progress import JobProgress, read_progress
from fsl_dist.training.runlog import describe_progress
from index.base.errors import RequestError
from tune.records import Result, Trial
from tune.sweeps.engine.driver import _describe

LINE = {
    "step": 13,
    "epoch": 1,
    "train/loss": 0.51234,
    "train/images_seen": 1300.0,
    "time/images_per_s": 812.4,
    "time/data_wait_s": 0.0123,
}


def describe(validation: str = "", *, seconds: float = 0.0, **changes: float) -> str:
    """A progress line as a run writes it."""
    return describe_progress(
        {**LINE, **changes},
        num_epochs=9,
        num_steps=8,
        num_images=0,
        seconds=seconds,
        elapsed_s=5.0,
        done_steps=12,
        validation=validation,
    )


@pytest.mark.parametrize(
    ("validation", "metric", "value"),
    [
        ("", None, None),
        ("knn/mcr@5 0.7512", "knn/mcr@5", 0.7512),
        ("knn/mcr@5 0.7512 (start 0.6000)", "knn/mcr@5", 0.7512),
        ("knn/mcr@5 0.6000 at the start", "knn/mcr@5", 0.6),
    ],
)
def test_the_newest_progress_line_is_read(validation: str, metric: str | None, value: float | None) -> None:
    log = "\n".join(
        ["data: 3 classes", describe(step=3), describe(validation), 'fsl-dist-result: {"a": 1}', ""]
    )
    assert read_progress(log) == JobProgress(
        line=describe(validation),
        epoch=2,
        epochs=9,
        step=5,
        steps=8,
        loss=0.5123,
        images_per_s=812,
        data_wait_ms=12,
        metric=metric,
        value=value,
    )


def test_a_run_of_minutes_and_a_loss_that_is_not_finite() -> None:
    found = read_progress(describe(seconds=60.0, **{"train/loss": float("nan")}))
    assert (found.epoch, found.epochs, found.loss) == (2, None, None)


def test_a_sweep_s_trials_are_read(tmp_path: Path) -> None:
    class PlanOfTen:
        num_done, num_wanted = 4, 10

    trial = Trial(number=3, point={"training.lr": 0.1}, folder=tmp_path)
    said = _describe(PlanOfTen(), trial, Result(state="finished", value=0.5, epochs=2))  # type: ignore[arg-type]
    found = read_progress(f"a\n{said}\n")
    assert (found.trials_done, found.trials_wanted, found.line) == (4, 10, said)


def test_other_commands_show_their_last_line() -> None:
    assert read_progress("one\ntwo\n\n") == JobProgress(line="two")
    assert read_progress("") == JobProgress()


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    found = CliRunner().invoke(fsl_dist, ["top", "--to", "ray", "--address", "http://127.0.0.1:1"])
    assert isinstance(found.exception, RequestError)
    assert str(found.exception).startswith("no Ray cluster answers at http://127.0.0.1:1 ")


def test_jobs_that_run_are_shown_and_those_that_ended_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    runner = CliRunner()
    assert runner.invoke(fsl_dist, ["top", "--once"]).output == "no job runs or waits\n"
    assert json.loads(runner.invoke(fsl_dist, ["top", "--json"]).output) == {"jobs": []}
    for name in ("ended", "runs"):
        folder = tmp_path / name
        folder.mkdir()
        about = {"command": "fsl-dist doctor", "submitted": time.time(), "folder": str(tmp_path)}
        (folder / "job.json").write_bytes(local.encode_json(about))
        # This process is the job's.
        identity = {"pid": os.getpid(), "started": local._start_of(os.getpid())}
        (folder / "process.json").write_bytes(local.encode_json(identity))
        (folder / "log").write_text("x" * 100_000 + "\n" + describe("knn/mcr@5 0.7512") + "\n")
    (tmp_path / "ended" / "exit-code").write_text("0")
    (job,) = json.loads(runner.invoke(fsl_dist, ["top", "--json"]).output)["jobs"]
    assert (job["name"], job["state"], job["command"]) == ("runs", "running", "fsl-dist doctor")
    assert (job["progress"]["loss"], job["progress"]["value"]) == (0.5123, 0.7512)
    shown = runner.invoke(fsl_dist, ["top", "--once"]).output
    for word in (
        "runs",
        "epoch 2/9 step 5/8",
        "0.5123",
        "812",
        "12 ms",
        "knn/mcr@5 0.7512",
        "fsl-dist doctor",
    ):
        assert word in shown
    assert "ended" not in shown
