"""`fsl-dist sweep`: trials in Ray actors, the driver really killed, a scheduler that stops, what fails and what is refused."""

import contextlib
import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from commands import PROGRAM, fsl_dist

from fsl_dist.config import load_config
from fsl_dist.training.loop import Watch
from index.base.errors import RequestError
from tune.plan import Plan
from tune.records import EVALUATION_FILE, RESULT_FILE, SweepFolder
from tune.sweep_file import SWEEP_FILE, load_stored, load_sweep
from tune.sweeps.early_stopping import build_scheduler
from tune.sweeps.sweep import prepare_sweep
from tune.sweeps.trial import check_point, run_trial

pytestmark = pytest.mark.integration


BASE = {
    "data": {
        "channels": 1,
        "resize": "exact",
        "resize_size": 16,
        "image_size": 16,
        "mean": [0.5],
        "std": [0.5],
        "flip": False,
        "decoder": "torchvision",
        "holdout_fraction": 0.25,
    },
    "backbone": {"name": "conv4", "width": 8},
    "method": {"kind": "pcn", "clusters": 2, "temperature": 1.0},
    "episode": {"n_way": 6, "k_shot": 4, "n_query": 3, "per_step": 1, "per_epoch": 8},
    "training": {"epochs": 4, "patience": 9, "lr": 1e-3},
    "evaluation": {"delta_tau": [0], "kmeans_runs": 2},
}
SPACE = {
    "method.temperature": {"loguniform": [0.1, 10]},
    "method.memory": {"uniform": [0, 0.9]},
    "episode.k_shot": {"choice": [4, 5, 20]},  # no class has 23 training images
}


def write_sweep(folder: Path, dataset: Path, **settings: object) -> Path:
    """SWEEP.yaml over the digits, its folder `folder`/sweep."""
    base = {**BASE, "data": {**BASE["data"], "dataset": str(dataset)}}
    sweep = {"base": base, "space": SPACE, "dir": str(folder / "sweep"), "trials": 3, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def results_of(folder: Path) -> dict[int, tuple]:
    """The result of each trial: its point, state, value, epochs, scores."""
    return {
        trial.number: (
            trial.point,
            trial.result.state,
            trial.result.value,
            trial.result.epochs,
            (trial.folder / EVALUATION_FILE).read_text() if trial.result.state == "finished" else "",
        )
        for trial in SweepFolder(folder).trials()
        if trial.result
    }


class NoJudge:
    """Stops no trial."""

    def watch(self, trial: int) -> Watch:
        return lambda epoch, value: False

    def is_stopped(self, trial: int) -> bool:
        return False


def run_here(config_path: Path) -> dict[int, tuple]:
    """The whole sweep, one trial after another in this process, never interrupted."""
    config = prepare_sweep(load_sweep(config_path))
    plan = Plan(config, SweepFolder(Path(config.dir)), check_point)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while (trial := plan.next()) is not None:
            plan.finish(trial, run_trial(config, trial, NoJudge()))
    finally:
        torch.set_num_threads(threads)
    return results_of(Path(config.dir))


def test_a_killed_sweep_goes_on_as_if_nothing_had_been(digits: Path, tmp_path: Path) -> None:
    grid = {"delta_tau": [-0.05, 0, 3], "base_clusters": [1, 2]}
    wanted = run_here(write_sweep(tmp_path / "whole", digits, evaluation=grid, seed=1))
    assert [row[1] for row in wanted.values()].count("finished") == 4
    assert "pruned" in [row[1] for row in wanted.values()]

    config = write_sweep(tmp_path / "killed", digits, evaluation=grid, seed=1)
    folder = tmp_path / "killed" / "sweep"
    driver = subprocess.Popen(
        [PROGRAM, "sweep", "run", "--config", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_half(folder, driver)
    finally:
        driver.kill()
        driver.communicate()
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"trials/*/{RESULT_FILE}")}
    assert 2 <= len(before) < len(wanted)

    resumed = fsl_dist("sweep", "resume", folder, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert results_of(folder) == wanted
    assert {path: path.stat().st_mtime_ns for path in before} == before
    summary = json.loads(resumed.stdout)
    assert (summary["finished"], summary["failed"]) == (4, 0)
    assert 0 < summary["utilisation"] <= 1
    assert len(SweepFolder(folder).sessions()) >= 1

    again = fsl_dist("sweep", "run", "--config", config)
    assert again.returncode == 2
    assert "already contains a sweep (--resume continues it" in again.stderr

    reported = fsl_dist("sweep", "report", folder, "--json")
    assert reported.returncode == 0, reported.stderr
    best = json.loads(reported.stdout)
    assert best["best_value"] == max(row[2] for row in wanted.values() if row[1] == "finished")
    run = load_config(folder / "best.yaml", [])
    assert run.run.dir == str(folder / "best")
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "as PCN Fig. 5" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "| base_clusters |" in (folder / "report.md").read_text()


def wait_for_half(folder: Path, driver: subprocess.Popen[str]) -> None:
    """Return once two trials have ended and another has reported."""
    for _ in range(24_000):
        files = SweepFolder(folder)
        ended = {trial.number for trial in files.trials() if trial.result}
        if len(ended) >= 2 and {report.trial for report in files.reports()} - ended:
            return
        assert driver.poll() is None, f"the sweep ended too soon: {driver.communicate()}"
        time.sleep(0.01)
    raise AssertionError("no half of a sweep within four minutes")


def test_a_failing_trial_is_recorded_and_stops_the_sweep_only_when_asked(
    digits: Path, tmp_path: Path
) -> None:
    # An absurd learning rate: the loss is not finite.
    space = {"training.lr": {"grid": [1e-3, 1e30]}}
    config = write_sweep(
        tmp_path,
        digits,
        space=space,
        search="grid",
        include_base=False,
        concurrency=1,
        settings={"training.epochs": 1},
    )
    done = fsl_dist("sweep", "run", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["finished"], summary["failed"]) == (1, 1)
    failed = SweepFolder(tmp_path / "sweep").trials()[1]
    assert failed.result is not None
    assert "training diverged " in failed.result.error
    assert (failed.folder / "error.txt").read_text().startswith("Traceback")
    stored = tmp_path / "sweep" / SWEEP_FILE
    _, settings = stored.read_text().split("\n", 1)  # below the checksum
    stored.write_text(settings.replace("max_failures: -1", "max_failures: 0"))
    refused = fsl_dist("sweep", "resume", tmp_path / "sweep")
    assert refused.returncode == 1
    assert "1 trials failed, more than max_failures=0; trial 0002" in refused.stderr


@pytest.mark.slow
def test_a_terminal_shows_a_table_while_optuna_proposes(digits: Path, tmp_path: Path) -> None:
    space = {"method.memory": {"uniform": [0, 0.9]}}
    settings = {"training.epochs": 2, "episode.per_epoch": 4}
    config = write_sweep(tmp_path, digits, space=space, search="optuna", trials=2, settings=settings)
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    driver = subprocess.Popen(
        [PROGRAM, "sweep", "run", "--config", config, "--json"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env=environment,
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody holds any more with an error
        while part := os.read(screen, 65536):
            shown += part
    os.close(screen)
    out, _ = driver.communicate()
    assert driver.returncode == 0, shown.decode()
    assert json.loads(out)["finished"] == 3
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"of 3 trials, 0:\d\d", text), text
    assert re.search(r"0000\W+running\W+.*the base", text), text
    assert re.search(r"3 of 3: trial 000\d 0\.\d{4} after 2 epochs", text), "log lines are above the table"


def test_requests_that_cannot_be_served(digits: Path, tmp_path: Path) -> None:
    for settings, words in (
        ({"settings": {"data.holdout_fraction": 0.0}}, "is reported by no trial: data.dataset="),
        ({"settings": {"episode.k_shot": 30}}, "episode.k_shot=30 with n_query=3 needs 33 images per class"),
        ({"metric": "knn/mcr@5"}, "is not measured for method.kind=pcn"),
        ({"dir": ""}, "dir is empty"),
    ):
        with pytest.raises(RequestError) as refused:
            prepare_sweep(load_sweep(write_sweep(tmp_path, digits, **settings)))
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "sweep").exists()
    # The file that sweeps are started with makes its folder no sweep.
    with pytest.raises(RequestError, match=r"is not a sweep folder: sweep-config.yaml is missing"):
        load_stored(tmp_path)


@pytest.mark.slow
def test_more_gpus_than_there_are_is_an_error_at_once(digits: Path, tmp_path: Path) -> None:
    refused = fsl_dist("sweep", "run", "--config", write_sweep(tmp_path, digits, resources={"gpus": 64.0}))
    assert refused.returncode == 2, refused.stderr
    assert "a trial needs 64 GPUs and the Ray cluster has" in refused.stderr
    assert not (tmp_path / "sweep" / SWEEP_FILE).exists()


def test_asha_stops_what_is_below_the_cut_of_a_rung_and_never_the_base() -> None:
    from tune.sweeps.config import Asha

    settings = SimpleNamespace(scheduler=Asha(grace_epochs=2, reduction=2.0), max_epochs=8, include_base=True)
    scheduler = build_scheduler(settings)  # type: ignore[arg-type]
    assert not scheduler.feed(1, 1, 0.0), "before the first rung nobody is judged"
    assert not scheduler.feed(1, 2, 0.5), "the first to come has nobody to be compared with"
    assert not scheduler.feed(2, 2, 0.9)
    assert scheduler.feed(3, 2, 0.1), "below the median of 0.5 and 0.9"
    assert not scheduler.feed(0, 2, 0.0), "the base is never stopped"
    assert not scheduler.feed(1, 3, 0.0), "between two rungs nobody is judged"


@pytest.mark.slow
def test_after_a_trial_of_two_workers_is_stopped_the_next_starts_at_once(
    digits: Path, tmp_path: Path
) -> None:
    # One after another: the second value is far worse, and stops at the only rung, which the third passes: it need be no better
    # than half-way between the two before it, and is much like the first.
    space = {"training.lr": {"grid": [1e-3, 1e-9, 1.1e-3]}}
    config = write_sweep(
        tmp_path,
        digits,
        space=space,
        search="grid",
        include_base=False,
        scheduler={"kind": "asha", "grace_epochs": 2, "reduction": 2},
        resources={"workers": 2},
        settings={"training.epochs": 3, "episode.per_step": 2},
    )
    done = fsl_dist("sweep", "run", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    trials = SweepFolder(tmp_path / "sweep").trials()
    assert [trial.result.state for trial in trials if trial.result] == ["finished", "stopped", "finished"]
    stopped = trials[1].result
    assert stopped is not None
    assert stopped.epochs == 2
    assert not (trials[1].folder / EVALUATION_FILE).exists()
    started = [(trial.folder / "trial.json").stat().st_mtime for trial in trials]
    ended = [(trial.folder / RESULT_FILE).stat().st_mtime for trial in trials]
    assert started[2] - ended[1] < 5
    # No placement group is left: else the third, which needs all cores, could not have run; and it ran no longer than the first.
    assert ended[2] - started[2] < 3 * (ended[0] - started[0])
