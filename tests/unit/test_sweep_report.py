"""A sweep's report: what it chooses, what it says of each knob, and what it writes."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fsl_dist.config import RunConfig, load_config
from fsl_dist.methods.pcn import PCNConfig
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.training.config import TrainingConfig
from index.base.errors import ConfigError
from tune.document import Code, Heading, Picture, Table, Text, render_html, render_markdown
from tune.records import Cell, Result, Session, SweepFolder, Trial, write_evaluation
from tune.space import Knob
from tune.sweep_file import SWEEP_FILE, render_sweep
from tune.sweeps.config import SweepConfig
from tune.sweeps.evaluation_tables import flatten, grid_tables, headline
from tune.sweeps.importance import knob_importance
from tune.sweeps.paper_figures import paper_figures
from tune.sweeps.report import write_report

BASE = RunConfig(
    method=PCNConfig(), training=TrainingConfig(patience=3), evaluation=EvaluationConfig(delta_tau=(0.0,))
)
SPACE = {"method.memory": Knob(uniform=(0.0, 0.9)), "training.lr": Knob(loguniform=(1e-4, 1e-2))}


def fill(folder: Path, num_trials: int = 12) -> SweepConfig:
    """A sweep whose value is the memory alone, as if it had been run; its last trial failed, the third was stopped."""
    config = SweepConfig(dir=str(folder), base=BASE, space=SPACE, trials=num_trials)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SWEEP_FILE).write_text(render_sweep(config))
    files = SweepFolder(folder)
    reports = []
    for number in range(num_trials + 1):
        point = config.point(number - 1) if number else {}
        trial = files.start(number, number - 1, point)
        value = float(point.get("method.memory", 0.3))
        state = "stopped" if number == 3 else "finished"
        result = Result(state=state, value=value, epochs=2, train_s=3.0, evaluate_s=1.0)  # type: ignore[arg-type]
        if number == num_trials:
            result = Result(state="failed", error="the loss is <nan>")
        files.finish(trial, result)
        if result.state == "finished":
            write_evaluation(trial.folder, "test", cells(value))
        reports += [{"trial": number, "epoch": epoch, "value": value, "stops": False} for epoch in (1, 2)]
    (folder / "reports.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
    files.write_session(1, Session(started="now", wall_s=40.0, busy_core_s=48.0, cores=2.0))
    return config


def cells(value: float) -> list[Cell]:
    """Scores over novel prototypes, Δτ and K_p."""
    found = []
    for clusters in (1, 4):
        repeated = {"mean": value / clusters, "std": 0.01, "n": 10}
        shifted = {"mean": value / clusters + 0.01, "std": 0.01, "n": 10}
        metrics = {"mca/novel": repeated, "mca/novel;dtau=3": shifted, "mca/base": value}
        found.append(Cell({"novel_clusters": clusters}, {**metrics, "knn/mcr@1": 0.2, "knn/mcr@5": value}))
    return found


def test_the_best_trial_stands_beside_the_base(tmp_path: Path) -> None:
    config = fill(tmp_path / "s")
    written = write_report(tmp_path / "s")
    trials = SweepFolder(tmp_path / "s").trials()
    scored = [trial for trial in trials if trial.result and trial.result.state != "failed"]
    wanted = max(scored, key=lambda trial: trial.result.value or 0)  # type: ignore[union-attr]
    assert (written.best_trial, written.base_value) == (wanted.number, 0.3)
    assert f"| {wanted.number:04d} |" in written.text
    assert "| 0000, the base | 30.0 |" in written.text
    assert "60% of 80 core seconds" in written.text
    assert "the other scores, which are of split test, and of novel classes" in written.text
    run = load_config(tmp_path / "s" / "best.yaml", [])
    assert run == config.trial_config(wanted.point, str(tmp_path / "s" / "best"))
    page = (tmp_path / "s" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "the loss is &lt;nan&gt;" in page
    assert (tmp_path / "s" / "pictures" / "knobs.png").read_bytes().startswith(b"\x89PNG")
    assert all(path.is_file() for path in written.files)


def test_the_tables_hold_every_trial_and_every_score(tmp_path: Path) -> None:
    fill(tmp_path)
    write_report(tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text())))
    assert [row["trial"] for row in rows] == [f"{number:04d}" for number in range(13)]
    assert [row["state"] for row in rows].count("finished") == 11
    assert rows[12]["error"] == "the loss is <nan>"
    scores = list(csv.DictReader(io.StringIO((tmp_path / "evaluation.csv").read_text())))
    assert len(scores) == 11 * 10
    shifted = [row for row in scores if row["trial"] == "0000" and row["delta_tau"] == "3"]
    assert [(row["novel_clusters"], row["score"]) for row in shifted] == [
        ("1", "mca/novel"),
        ("4", "mca/novel"),
    ]
    assert float(shifted[1]["mean"]) == pytest.approx(0.3 / 4 + 0.01)
    assert shifted[1]["n"] == "10"


def test_importance_finds_the_knob_that_counts(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    shares = knob_importance(SweepFolder(tmp_path).trials(), SPACE)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["method.memory"] > 0.9
    fill(tmp_path / "few", 5)
    assert knob_importance(SweepFolder(tmp_path / "few").trials(), SPACE) == {}


def test_the_grid_shows_the_settings_that_move_a_score() -> None:
    tables = grid_tables(cells(0.5))
    assert tables == [
        [
            ["novel_clusters", "delta_tau", "mca/novel %"],
            ["1", "0", "50.0 ± 1.0"],
            ["1", "3", "51.0 ± 1.0"],
            ["4", "0", "12.5 ± 1.0"],
            ["4", "3", "13.5 ± 1.0"],
        ],
        [["mca/base %"], ["50.0"]],
        [["k_p", "knn/mcr %"], ["1", "20.0"], ["5", "50.0"]],
    ]
    # A setting that moves nothing here, but does in another trial.
    assert grid_tables(cells(0.2), [cells(0.5)])[2] == [["k_p", "knn/mcr %"], ["1", "20.0"], ["5", "20.0"]]
    assert headline(cells(0.5), 5)["knn/mcr@5"] == 0.5
    assert {one.score for one in flatten([Cell({}, {"recall@5/base;dtau=-2": 0.5, "auc@40": 0.1})])} == {
        "recall@5/base",
        "auc",
    }


def test_a_document_is_written_in_both_forms() -> None:
    blocks = [
        Heading("A & b", 1),
        Text("<script>"),
        Table([["x", "y|z"], ["1", "2"], ["3", "4"]], marked=1),
        Picture("p", b"\x89PNG", "what & why"),
        Code("fsl-dist train"),
    ]
    text = render_markdown(blocks, "pictures")
    assert "# A & b" in text
    assert "| x | y\\|z |\n| --- | --- |\n| 1 | 2 |" in text
    assert "![what & why](pictures/p.png)" in text
    page = render_html(blocks, "t")
    assert "&lt;script&gt;" in page
    assert '<tr class="marked"><td>3</td>' in page
    assert "default-src 'none'" in page


def test_a_sweep_that_has_just_begun_is_reported(tmp_path: Path) -> None:
    config = SweepConfig(dir=str(tmp_path), base=BASE, space=SPACE)
    (tmp_path / SWEEP_FILE).write_text(render_sweep(config))
    SweepFolder(tmp_path).start(0, -1, {})
    written = write_report(tmp_path)
    assert written.best_trial is None
    assert "No trial has a value yet." in written.text
    assert "1 under way or cut off" in written.text
    with pytest.raises(ConfigError, match=r"is not a sweep folder: sweep-config.yaml is missing"):
        write_report(tmp_path / "nowhere")


def test_records_are_read_back(tmp_path: Path) -> None:
    files = SweepFolder(tmp_path)
    trial = files.start(7, 3, {"backbone.hidden": (512, 128), "training.lr": 0.1})
    assert files.trials() == [trial]
    ended = files.finish(trial, Result(state="pruned", error="why"))
    assert files.trials() == [ended]
    assert np.isclose(asdict(ended)["point"]["training.lr"], 0.1)


def test_the_papers_figures_are_drawn_where_the_sweep_covers_them(tmp_path: Path) -> None:
    def trial(number: int, **point: object) -> Trial:
        told = {f"method.{key}": value for key, value in point.items()}
        result = Result(state="finished", value=number / 10)
        return Trial(number=number, folder=tmp_path, point=told, result=result)  # type: ignore[arg-type]

    def shifted(low: float) -> dict:
        return {"mca/novel": low} | {f"mca/novel;dtau={delta}": low + 0.1 * delta for delta in (1, 3)}

    # PCN Fig. 5: three shifts are a curve, two shots are none.
    grid = [Cell({"novel_shots": shots}, shifted(0.1 * shots)) for shots in (1, 2)]
    base = trial(0)
    blocks = paper_figures([base], {}, {0: grid}, "mca/base", [(base, "the base")])
    assert [block.text for block in blocks if isinstance(block, Heading)] == [
        "The papers' figures",
        "Temperature at test time, as PCN Fig. 5",
    ]
    assert Text("With novel_shots=1.") in blocks
    # Deep kNN Table S3: the best of each cell, by validation and by the queries where they were scored.
    trials = [trial(n, k_same=k, m_other=m) for n, (k, m) in enumerate([(3, 1), (3, 5), (5, 1), (3, 1)])]
    space = {"method.k_same": Knob(choice=(3, 5)), "method.m_other": Knob(choice=(1, 5))}
    scores = {0: [Cell({}, {"knn/mcr@5": 0.4})], 1: [], 2: [], 3: []}
    tables = [b for b in paper_figures(trials, space, scores, "knn/mcr@5", []) if isinstance(b, Table)]
    assert tables == [
        Table([["validation: K \\ M", "1", "5"], ["3", "30.0 (2)", "10.0 (1)"], ["5", "20.0 (1)", ""]]),
        Table([["scored images: K \\ M", "1", "5"], ["3", "40.0 (1)", ""], ["5", "", ""]]),
    ]
    # Deep clustering Fig. 3: a curve for each number of ways.
    weights = [trial(n, scatter_weight=n / 10, ways=10 * (n % 2)) for n in range(6)]
    clustered = {n: [Cell({}, {"kmeans/ca": {"mean": 0.5, "std": 0.1, "n": 5}})] for n in range(6)}
    pictures = [b for b in paper_figures(weights, {}, clustered, "kmeans/ca", []) if isinstance(b, Picture)]
    assert [picture.name for picture in pictures] == ["scatter-weight"]
    assert paper_figures(weights[:2], {}, clustered, "kmeans/ca", []) == []
