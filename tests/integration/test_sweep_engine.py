"""What Ray Tune does with a sweep: schedulers and searchers, what is killed, what hangs, a cluster that grows, a budget."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import PROGRAM, fsl_dist
from sweep_processes import signal_actor, wait_until

import fsl_dist as library
from fsl_dist.training.checkpoint import CheckpointFolder, read_progress
from fsl_dist.training.ray.session import ray_session
from tune.records import RESULT_FILE, SweepFolder, Trial
from tune.space import Knob

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
    "episode": {"n_way": 6, "k_shot": 4, "n_query": 3, "per_step": 1, "per_epoch": 2},
    "training": {"epochs": 4, "patience": 99, "lr": 1e-3},
    "evaluation": {"delta_tau": [0], "kmeans_runs": 1},
}
SPACE = {"method.temperature": {"loguniform": [0.1, 10]}, "training.lr": {"loguniform": [1e-5, 1e-2]}}


def configure(folder: Path, dataset: Path, **settings: object) -> dict:
    """A sweep over the digits in `folder`."""
    base = {**BASE, "data": {**BASE["data"], "dataset": str(dataset)}}
    return {"base": base, "space": SPACE, "dir": str(folder), "trials": 3, **settings}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for the sweeps that run in this process."""
    with ray_session(2):
        yield


def check_reports(folder: Path) -> dict[int, list[int]]:
    """Each trial's reported epochs; none is reported twice of one network's history, and none is left out."""
    found: dict[tuple[int, int], list[int]] = {}
    for report in SweepFolder(folder).reports():
        found.setdefault((report.trial, report.change), []).append(report.epoch)
    for epochs in found.values():
        assert epochs == list(range(epochs[0], epochs[0] + len(epochs)))
    return {trial: epochs for (trial, change), epochs in found.items() if change == 0}


def states(trials: list[Trial]) -> list[str]:
    return [trial.result.state if trial.result else "" for trial in trials]


@pytest.mark.usefixtures("ray")
def test_a_sweep_from_python_has_its_best_run_a_table_a_report_and_tunes_result(
    digits: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    search = {"kind": "import", "class": "ray.tune.search.optuna:OptunaSearch", "settings": {"seed": 1}}
    sweep = library.sweep(
        configure(tmp_path / "s", digits, search=search), settings={"trials": 2}, progress=lines.append
    )
    assert sweep.summary is not None
    assert (sweep.summary.finished, sweep.summary.best_trial) == (3, int(sweep.best.dir.name))
    table = sweep.dataframe()
    assert list(table.index) == [0, 1, 2]
    assert list(table["state"]) == ["finished"] * 3
    assert table["mca/base"].max() == sweep.summary.best_value == sweep.report().best_value
    assert 0.1 <= table.loc[1, "method.temperature"] <= 10
    assert (
        library.open_run(tmp_path / "s" / "trials" / "0001").config.training.lr == table.loc[1, "training.lr"]
    )
    assert sweep.grid is not None
    assert sorted(result.config["number"] for result in sweep.grid) == [0, 1, 2]
    assert {result.metrics["value"] for result in sweep.grid} == set(table["mca/base"])
    assert any("of 3 trials" in line for line in lines)
    again = library.sweep(dir=tmp_path / "s", resume=True, progress=False)
    assert len(again.grid or ()) == 0
    assert again.dataframe().equals(table)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_population_goes_on_from_its_best_networks_and_never_changes_the_base(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    scheduler = {"kind": "pbt", "every_epochs": 1, "quantile": 0.5}
    sweep = library.sweep(configure(folder, digits, scheduler=scheduler, trials=3), progress=False)
    trials = SweepFolder(folder).trials()
    assert states(trials) == ["finished"] * 4
    assert trials[0].changes == ()
    changed = [trial for trial in trials if trial.changes]
    assert changed, "half of the population is replaced after each epoch"
    space = {key: Knob(**{kind: tuple(ends) for kind, ends in knob.items()}) for key, knob in SPACE.items()}
    for trial in changed:
        run = library.open_run(trial.folder).config
        assert (run.method.temperature, run.training.lr) == tuple(trial.point.values())
        for key, value in trial.point.items():
            low, high = space[key].loguniform
            assert low * 0.999 <= float(value) <= high * 1.001
    check_reports(folder)
    assert sweep.summary is not None
    assert 0 < sweep.summary.utilisation <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_hyperband_fills_its_brackets_and_stops_the_worse_part_of_each(digits: Path, tmp_path: Path) -> None:
    # Brackets of 3, 5 and 9 trials; the second halves after 1 of 4 epochs: two of its three stay.
    space = {"training.lr": {"grid": [1e-2, 3e-3, 1e-3, 1e-9, 1e-8, 5e-3]}}
    settings = configure(
        tmp_path / "s",
        digits,
        scheduler="hyperband",
        space=space,
        search="grid",
        trials=6,
        include_base=False,
    )
    library.sweep(settings, settings={"training.epochs": 9, "episode.per_epoch": 1}, progress=False)
    trials = SweepFolder(tmp_path / "s").trials()
    assert states(trials[:3]) == ["finished"] * 3
    assert sorted(states(trials[3:])) == ["finished", "finished", "stopped"]
    stopped = next(trial for trial in trials if trial.result and trial.result.state == "stopped")
    assert stopped.result is not None
    assert stopped.result.epochs == 3


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_trial_whose_process_dies_goes_on_and_one_that_hangs_fails(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    files = SweepFolder(folder)
    sent = []

    def disturb() -> None:
        for signum, after in ((signal.SIGKILL, 2), (signal.SIGSTOP, 12)):
            wait_until(lambda after=after: len(files.reports()) >= after)
            sent.append(signal_actor(signum))

    thread = threading.Thread(target=disturb)
    thread.start()
    library.sweep(
        configure(folder, digits, trials=2, concurrency=1, trial_timeout_s=15.0, max_failures=9),
        settings={"training.epochs": 9},
        progress=False,
    )
    thread.join()
    assert len(sent) == 2
    trials = files.trials()
    assert states(trials) == ["finished", "failed", "finished"]
    assert trials[1].result is not None
    assert "no validation and no end within trial_timeout_s=15 seconds" in trials[1].result.error
    assert check_reports(folder)[0] == list(range(1, 10))


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_minutes_end_a_sweep_within_a_tenth(digits: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    library.sweep(
        configure(tmp_path / "s", digits, trials=99, minutes=0.5),
        settings={"training.epochs": 999},
        progress=False,
    )
    wall_s = time.monotonic() - started
    assert 30 * 0.9 <= wall_s <= 30 * 1.1
    trials = [trial for trial in SweepFolder(tmp_path / "s").trials() if trial.result]
    assert set(states(trials)) == {"stopped"}
    assert all(trial.result and trial.result.value is not None for trial in trials)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"scheduler": {"kind": "asha", "grace_epochs": 2}},
        {"search": "optuna"},
        {"scheduler": {"kind": "pbt", "every_epochs": 2}},
        {"scheduler": "hyperband"},
        {"scheduler": {"kind": "median", "min_trials": 1}},
    ],
    ids=["asha", "optuna", "pbt", "hyperband", "median"],
)
def test_a_killed_driver_loses_no_trial_and_trains_none_again(
    digits: Path, tmp_path: Path, settings: dict
) -> None:
    folder = tmp_path / "s"
    config = tmp_path / "sweep.yaml"
    longer = {"training.epochs": 9, "training.patience": 99}
    config.write_text(yaml.safe_dump(configure(folder, digits, trials=4, settings=longer, **settings)))
    files = SweepFolder(folder)
    driver = subprocess.Popen([PROGRAM, "sweep", "run", "--config", config], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(files.reports()) >= 16 or driver.poll() is not None)
        assert driver.poll() is None, driver.communicate()
    finally:
        driver.kill()
        driver.communicate()
    before = files.trials()
    ended = {trial.number: trial.folder.joinpath(RESULT_FILE).read_text() for trial in before if trial.result}
    reported = files.reports()
    for trial in before:
        latest = CheckpointFolder(trial.folder, keep=1, owner=None).latest()
        own = [r.epoch for r in reported if (r.trial, r.change) == (trial.number, len(trial.changes))]
        if latest is not None and own and not trial.result:
            # A checkpoint follows each report: at most the last reported epoch is retrained.
            assert read_progress(latest).epoch >= own[-1] - 1
    resumed = fsl_dist("sweep", "resume", folder, "--json")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout)
    assert (summary["failed"], summary["finished"] + summary["stopped"]) == (0, 5)
    assert files.reports()[: len(reported)] == reported
    check_reports(folder)
    for number, text in ended.items():
        assert files.trial_folder(number).joinpath(RESULT_FILE).read_text() == text


@pytest.mark.slow
def test_trials_start_on_a_node_that_joins_and_go_on_elsewhere_when_it_dies(
    digits: Path, tmp_path: Path
) -> None:
    program = tmp_path / "grow.py"
    program.write_text(GROW)
    config = tmp_path / "sweep.yaml"
    space = {"training.lr": {"grid": [1e-3, 2e-3, 3e-3, 4e-3]}}
    longer = {"training.epochs": 30, "training.patience": 99}
    config.write_text(
        yaml.safe_dump(
            configure(
                tmp_path / "s",
                digits,
                space=space,
                search="grid",
                trials=4,
                settings=longer,
                include_base=False,
            )
        )
    )
    done = subprocess.run(
        [PROGRAM.with_name("python"), program, config], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["before"], facts["after"], facts["finished"]) == (1, 3, 4), done.stderr
    assert "its worker has died" in done.stderr
    check_reports(tmp_path / "s")


GROW = """
import json, sys, time
from pathlib import Path
from fsl_dist.training.ray.session import prepare_import
prepare_import()
import ray
from ray.cluster_utils import Cluster
from tune.records import SweepFolder
from tune.sweep_file import load_sweep
from tune.sweeps.sweep import prepare_sweep, run_tuner

config = prepare_sweep(load_sweep(Path(sys.argv[1])))
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
most = {"before": 0, "after": 0, "died": 0}
nodes = []

def show(standing):
    when = ("before", "after", "died")[len(nodes)]
    most[when] = max(most[when], len(standing.running))
    if when == "before" and len(SweepFolder(Path(config.dir)).reports()) >= 3:
        nodes.append(cluster.add_node(num_cpus=2))
    elif when == "after" and len(standing.running) == 3 and all(line.epochs >= 2 for line in standing.running):
        nodes[0].all_processes["raylet"][0].process.kill()
        nodes.append(None)
        while len([node for node in ray.nodes() if node["Alive"]]) > 1:
            time.sleep(0.1)

summary, _ = run_tuner(config, show=show)
print(json.dumps({**most, "finished": summary.finished}))
ray.shutdown()
cluster.shutdown()
"""
