"""`fsl-dist sweep` over indexes: the driver really killed, resumed, reported."""

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import PROGRAM, fsl_dist

from tune.index_sweeps.sweep import drive_index_sweep
from tune.index_sweeps.trial import read_cells
from tune.records import RESULT_FILE, SweepFolder
from tune.sweep_file import load_sweep

pytestmark = pytest.mark.integration


def write_sweep(folder: Path, **settings: object) -> Path:
    """SWEEP.yaml over 2,000 vectors around 30 centres, its folder `folder`/sweep."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((30, 16))
    vectors = centres[rng.integers(0, 30, 2000)] + rng.standard_normal((2000, 16))
    np.save(folder / "x.npy", vectors.astype(np.float32))
    sweep = {
        "dir": str(folder / "sweep"),
        "index": {"vectors": str(folder / "x.npy")},
        "space": {
            "kind": {"choice": ["ivf_flat", "ivf_pq"]},
            "nlist": {"randint": [4, 60]},  # at most 51 are founded well
            "shards": {"choice": [1, 2]},
        },
        "evaluation": {"nprobe": [1, 2, 8], "k_factor": [1, 4]},
        "trials": 7,
        "sample": 200,
        **settings,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def results_of(folder: Path) -> dict[int, tuple]:
    """The result of each trial without times: its point, how it ended, what each cell found and contains."""
    return {
        trial.number: (
            trial.point,
            trial.result.state,
            trial.result.error,
            [(cell.parameters, cell.recall, cell.bytes) for cell in read_cells(trial.folder)],
        )
        for trial in SweepFolder(folder).trials()
        if trial.result
    }


@pytest.mark.slow
def test_a_killed_sweep_of_indexes_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    drive_index_sweep(load_sweep(write_sweep(tmp_path / "whole")), show=lambda line: None)  # type: ignore[arg-type]
    wanted = results_of(tmp_path / "whole" / "sweep")
    states = [row[1] for row in wanted.values()]
    assert states.count("finished") == 8
    assert "pruned" in states

    config, folder = write_sweep(tmp_path / "killed"), tmp_path / "killed" / "sweep"
    driver = subprocess.Popen([PROGRAM, "sweep", "run", "--config", config], stderr=subprocess.DEVNULL)
    try:
        for _ in range(24_000):
            files = SweepFolder(folder)
            ended = {trial.number: trial.result for trial in files.trials()}
            # Two are measured, and another is built or being built.
            if (
                len([r for r in ended.values() if r and r.state == "finished"]) >= 2
                and None in ended.values()
            ):
                break
            assert driver.poll() is None, "the sweep ended too soon"
            time.sleep(0.005)
    finally:
        driver.kill()
        driver.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"trials/*/{RESULT_FILE}")}
    truth = (folder / "true-neighbours.npz").stat().st_mtime_ns
    assert 2 <= len(before) < len(wanted)

    resumed = fsl_dist("sweep", "resume", folder, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert results_of(folder) == wanted
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "true-neighbours.npz").stat().st_mtime_ns == truth
    summary = json.loads(resumed.stdout)
    assert (summary["finished"], summary["failed"], summary["metric"]) == (8, 0, "ms")
    assert not list(folder.glob("trials/*/index"))

    again = fsl_dist("sweep", "run", "--config", config)
    assert again.returncode == 2
    assert "already contains a sweep (--resume continues it" in again.stderr

    reported = fsl_dist("sweep", "report", folder, "--json")
    assert reported.returncode == 0, reported.stderr
    best = json.loads(reported.stdout)
    assert best["best_trial"] == summary["best_trial"]
    values = [trial.result.value for trial in SweepFolder(folder).trials() if trial.result]
    assert best["best_value"] == min(value for value in values if value is not None)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http://" not in page
    assert "https://" not in page
    assert "fsl-dist index build --vectors" in (folder / "report.md").read_text()
