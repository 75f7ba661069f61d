"""MLflow at a real server: what arrives, a run that is killed, a server that goes away or does not answer, a sweep's entries."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import GREY_16_PX
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_server import MlflowServer, Relay

from fsl_dist.config import RunConfig, load_config
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.trackers import sending
from fsl_dist.training.trackers.mlflow_tracker import tracking_uri, valid_name
from fsl_dist.training.trackers.tracker import TrackedRun
from tune.records import Cell, Result, SweepFolder, write_evaluation
from tune.space import Knob
from tune.sweeps.config import SweepConfig
from tune.sweeps.tracking import report_trial, tracking_sweep

pytestmark = pytest.mark.integration

SETTINGS = [
    *GREY_16_PX,
    "backbone.name=conv4",
    "backbone.width=8",
    "training.batch_size=60",
    "training.checkpoint_steps=2",
    "training.patience=1000",
    "training.schedule=constant",  # so that a resumed run of another length takes the same steps
    "training.warmup=0",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture
def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Runs of this test go to the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return MlflowClient(server.uri)


def settings(digits: Path, run: Path, epochs: int = 2) -> RunConfig:
    return load_config(None, list_settings(digits, run, epochs))


def list_settings(digits: Path, run: Path, epochs: int) -> list[str]:
    named = [f"data.dataset={digits}", f"run.dir={run}", "run.trackers=[mlflow]", f"training.epochs={epochs}"]
    return [*SETTINGS, *named]


def shown(client: MlflowClient, folder: Path, tracker: str = "mlflow") -> Run:
    return client.get_run(json.loads((folder / sending.IDS_FILE).read_text())[tracker]["id"])


def check_metrics(client: MlflowClient, run: Path) -> None:
    """Every value of metrics.jsonl is at the server, at its step, once."""
    wanted: dict[str, dict[int, float]] = {}
    for line in read_metrics(run):
        for name, value in line.items():
            if name != "step" and not name.startswith(("time/", "epoch")):
                wanted.setdefault(name, {})[line["step"]] = value
    assert len(wanted) > 5
    for name, values in wanted.items():
        found = client.get_metric_history(shown(client, run).info.run_id, valid_name(name))
        assert sorted((metric.step, metric.value) for metric in found) == sorted(values.items()), name


@pytest.mark.slow
def test_a_run_at_mlflow_has_its_settings_its_metrics_and_its_end(
    client: MlflowClient, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    summary = train_run(settings(digits, tmp_path / "first"))
    run = shown(client, tmp_path / "first")
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "fsl-dist"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.params["method.kind"] == "deep_knn"
    assert run.data.metrics["report/best_value"] == pytest.approx(summary.best_value)
    assert run.data.tags["checkpoint"] == summary.checkpoint
    check_metrics(client, tmp_path / "first")
    assert capfd.readouterr().out == ""  # stdout is the command's answer


@pytest.mark.slow
def test_a_killed_run_continues_its_entry(client: MlflowClient, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "cluster.cli", "train", *list_settings(digits, run, 400)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        for _ in range(1200):
            if (run / sending.IDS_FILE).is_file() and shown(client, run).data.metrics.get("train/loss"):
                break
            assert process.poll() is None, process.stderr.read()[-2000:]  # type: ignore[union-attr]
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    before = shown(client, run)
    assert before.info.status == "RUNNING"
    done = max(line["epoch"] for line in read_metrics(run))
    train_run(settings(digits, run, done + 3), resume=True)
    after = shown(client, run)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    check_metrics(client, run)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["cut", "hold_up"])
def test_a_server_that_goes_away_costs_a_warning(
    server: MlflowServer,
    client: MlflowClient,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    relay = Relay(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", relay.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sending, "SEND_EVERY_S", 0.05)
    monkeypatch.setattr(sending, "FLUSH_S", 2.0)
    run = tmp_path / "run"
    is_gone = False

    def leave(epoch: int, value: float) -> bool:
        nonlocal is_gone
        if epoch == 3:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (
                (run / sending.IDS_FILE).is_file() and shown(client, run).data.metrics.get("train/loss")
            ):
                time.sleep(0.05)
            getattr(relay, end)()
            is_gone = True
        return False

    started = time.monotonic()
    summary = train_run(settings(digits, run, 6), watch=leave)
    assert (summary.epochs, is_gone) == (6, True)
    assert len({line["epoch"] for line in read_metrics(run)}) == 6
    warned = [
        record.getMessage() for record in caplog.records if "run.trackers=mlflow: nothing" in record.message
    ]
    assert len(warned) == 1, warned
    assert "\n" not in warned[0]
    assert time.monotonic() - started < 100
    if end == "hold_up":
        # A sweep has many trials: the next run of this process waits less.
        monkeypatch.setattr(sending, "FLUSH_S", 60.0)
        caplog.clear()
        again = time.monotonic()
        train_run(settings(digits, tmp_path / "next", 1))
        assert time.monotonic() - again < 50
        assert "did not answer in time" in caplog.text
    assert shown(client, run).info.status == "RUNNING"
    relay.cut()


def test_a_server_that_is_not_there_costs_a_warning(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert train_run(settings(digits, tmp_path / "run")).epochs == 2
    (warned,) = [record.getMessage() for record in caplog.records if "nothing more is sent" in record.message]
    assert "secret" not in warned


@pytest.mark.slow
def test_a_sweep_has_an_entry_and_each_trial_one_below_it(
    server: MlflowServer, client: MlflowClient, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    base = settings(digits, folder, 1)
    base = replace(base, run=replace(base.run, dir="", trackers=("tensorboard", "mlflow")))
    config = SweepConfig(dir=str(folder), base=base, space={"training.lr": Knob(choice=(1e-3, 1e-4))})
    with tracking_sweep(config) as facts:
        for number in (1, 2):
            trial = SweepFolder(folder).start(number, number - 1, {"training.lr": 10.0**-number})
            run = config.trial_config(trial.point, str(trial.folder))
            summary = train_run(run, sweep=folder)
            write_evaluation(
                trial.folder, "test", [Cell({}, {"knn/mcr@5": 0.25, "mca/novel": {"mean": 0.5}})]
            )
            report_trial(config, trial, run, Result(state="finished", value=summary.best_value, epochs=1))
        facts.update(best_trial=1, report=str(folder / "report.html"))
    sweep = shown(client, folder)
    assert (sweep.info.run_name, sweep.info.status) == ("sweep", "FINISHED")
    assert sweep.data.params["space.training.lr.choice"] == "[0.001, 0.0001]"
    assert sweep.data.metrics["report/best_trial"] == 1
    trials = client.search_runs(
        [sweep.info.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'"
    )
    assert sorted(trial.info.run_name for trial in trials) == ["sweep 0001", "sweep 0002"]
    for trial in trials:
        assert trial.data.tags["sweep"] == "sweep"
        assert trial.data.tags["state"] == "finished"
        assert trial.data.metrics["report/knn/mcr_at_5"] == 0.25
        assert trial.data.metrics["report/mca/novel"] == 0.5
        assert trial.info.status == "FINISHED"
    for number in (1, 2):
        check_metrics(client, folder / "trials" / f"{number:04d}")
        assert (folder / "trials" / f"{number:04d}" / "tensorboard").is_dir()


@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:DeprecationWarning"
)  # MLflow's use of SQLAlchemy
def test_without_a_server_a_sweep_has_a_file_of_its_own(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    alone = TrackedRun(folder=tmp_path / "alone", name="alone")
    assert tracking_uri(alone) == f"sqlite:///{tmp_path}/mlflow.db"
    folder = tmp_path / "sweep"
    train_run(settings(digits, folder / "trials" / "0000", 1), sweep=folder)
    check_metrics(MlflowClient(f"sqlite:///{folder}/mlflow.db"), folder / "trials" / "0000")
