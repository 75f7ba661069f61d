"""How sure a sweep's choice is: standard errors from their definition, trials as good as the best, and what the report says of both."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.metrics.standard_error import ScoredImages
from fsl_dist.plots.curves import Curve, draw_curves
from fsl_dist.training.launch import train_run
from fsl_dist.training.splits import split_run
from tune.records import Report, Result, SweepFolder, is_record
from tune.space import Knob
from tune.sweep_file import SWEEP_FILE, render_sweep
from tune.sweeps import plots
from tune.sweeps.certainty import judge_certainty
from tune.sweeps.config import SweepConfig
from tune.sweeps.report import WrittenReport, write_report


@pytest.mark.parametrize(
    ("metric", "counts", "value", "error"),
    [
        # A share of n images: the binomial's √(p(1−p)/n), however they are divided over classes.
        ("knn/acc@5", (10, 10), 0.95, math.sqrt(0.95 * 0.05 / 20)),
        ("knn/acc@5", (19, 1), 0.95, math.sqrt(0.95 * 0.05 / 20)),
        ("recall@5/base", (100,), 0.5, 0.05),
        ("kmeans/ca", (50, 50), 0.5, 0.05),
        # A mean of two classes' shares: half the root of the sum of their variances.
        ("knn/mcr@5", (10, 10), 0.95, math.sqrt(0.95 * 0.05 / 20)),
        ("knn/mcr@5", (98, 2), 0.5, math.sqrt(0.25 / 98 + 0.25 / 2) / 2),
        ("mca/base", (98, 2), 0.5, math.sqrt(0.25 / 98 + 0.25 / 2) / 2),
        ("balanced_recall@10/base", (4, 4, 4), 0.25, math.sqrt(3 * 0.25 * 0.75 / 4) / 3),
        # All right or all wrong is not certain: half an image less.
        ("knn/acc@5", (20,), 1.0, math.sqrt(0.975 * 0.025 / 20)),
        ("knn/acc@5", (20,), 0.0, math.sqrt(0.975 * 0.025 / 20)),
        ("knn/acc@1", (1,), 1.0, 0.5),
        # No share.
        ("kmeans/nmi", (50, 50), 0.5, None),
        ("kmeans/ari", (50, 50), 0.5, None),
        ("triplet/acc", (50, 50), 0.5, None),
        ("knn/acc@5", (20,), math.nan, None),
    ],
)
def test_standard_errors_are_those_of_their_definitions(
    metric: str, counts: tuple[int, ...], value: float, error: float | None
) -> None:
    found = ScoredImages(counts, (1,) * len(counts)).standard_error(metric, value)
    assert found == (None if error is None else pytest.approx(error))


def test_rarest_classes_are_those_with_the_fewest_training_images() -> None:
    images = ScoredImages(counts=(50, 2, 3, 7), train_counts=(900, 5, 5, 0))
    assert images.standard_error("knn/rs@5", 0.5) == pytest.approx(math.sqrt(0.25 / 2 + 0.25 / 3) / 2)
    assert ScoredImages((5,), (0,)).standard_error("knn/rs@5", 0.5) is None


@pytest.mark.parametrize("metric", ["knn/acc@5", "knn/mcr@5"])
@pytest.mark.parametrize("counts", [(20,), (40, 3, 3), (2,) * 10])
def test_standard_errors_are_how_far_scores_of_new_images_scatter(
    metric: str, counts: tuple[int, ...]
) -> None:
    rng, p = np.random.default_rng(0), 0.8
    right = np.stack([rng.binomial(count, p, 20000) for count in counts])
    sizes = np.array(counts)[:, None]
    scores = right.sum(0) / sizes.sum() if metric == "knn/acc@5" else (right / sizes).mean(0)
    images = ScoredImages(counts, counts)
    assert images.standard_error(metric, p) == pytest.approx(scores.std(), rel=0.03)


@pytest.mark.parametrize(
    "method",
    [
        ("method.kind=deep_knn",),
        ("method.kind=cross_entropy",),
        ("method.kind=deep_knn", "training.stop_metric=kmeans/ca"),
        ("method.kind=pcn", "method.clusters=1", "episode.n_way=4", "episode.k_shot=2", "episode.n_query=2"),
    ],
    ids=lambda method: method[-1] if len(method) < 3 else "pcn",
)
def test_a_run_writes_down_what_decides(digits: Path, tmp_path: Path, method: tuple[str, ...]) -> None:
    catalogue = Catalogue.open(digits)
    features = tmp_path / "x.npy"
    np.save(features, np.random.default_rng(0).normal(size=(len(catalogue.labels), 6)).astype(np.float32))
    named = [f"data.dataset={digits}", f"data.features={features}", f"run.dir={tmp_path / 'run'}"]
    config = load_config(
        None,
        [*named, "backbone.name=mlp", "backbone.hidden=[4]", "training.epochs=1", "run.trackers=[]", *method],
    )
    train_run(config)
    splits = split_run(catalogue, config)
    assert splits.stop is not None
    found = ScoredImages.read(tmp_path / "run")
    assert found == ScoredImages(tuple(splits.stop.counts.tolist()), tuple(splits.train.counts.tolist()))
    assert found.standard_error(config.stop_metric, 0.5) is not None
    assert is_record("trials/0003/validation.json")  # a report on a sweep at a store reads it


def fill(
    folder: Path, values: tuple[float, ...], counts: tuple[int, ...] = (2,) * 10, metric: str = "knn/mcr@5"
) -> WrittenReport:
    """The report on a sweep whose trials reached these values."""
    base = RunConfig()
    base = replace(base, training=replace(base.training, stop_metric=metric))
    config = SweepConfig(dir=str(folder), base=base, space={"training.lr": Knob(loguniform=(1e-4, 1e-2))})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SWEEP_FILE).write_text(render_sweep(config))
    files = SweepFolder(folder)
    for number, value in enumerate(values):
        trial = files.start(number, number - 1, config.point(number) if number else {})
        files.finish(trial, Result(state="finished", value=value, epochs=3))
        if counts:
            ScoredImages(counts, counts).write(trial.folder)
    lines = [{"trial": 0, "epoch": epoch, "value": 0.1, "stops": False} for epoch in (1, 2, 3)]
    (folder / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return write_report(folder)


def test_two_equal_trials_on_twenty_images_are_no_choice(tmp_path: Path) -> None:
    written = fill(tmp_path, (0.80, 0.95, 0.95, 0.92, 0.60))
    error = math.sqrt(0.95 * 0.05 / 20)
    assert (written.best_trial, written.num_validation_images) == (1, 20)
    assert written.within_one_standard_error == (2, 3)
    assert written.standard_errors[1] == pytest.approx(error)
    assert (
        "3 of 5 trials are within one standard error (4.9 points) of the best knn/mcr@5: 20 validation"
        in written.warning
    )
    assert "\n" not in written.warning
    assert f"**Warning:** {written.warning}" in written.text
    assert "| 0001 | 95.0 ± 4.9 | the best |" in written.text
    assert "| 0002 | 95.0 ± 4.9 | yes |" in written.text
    assert "| 0003 | 92.0 ± 6.1 | yes |" in written.text
    assert "| 0000, the base | 80.0 ± 8.9 | no |" in written.text
    assert "√(p(1−p)/n) with n = 20, the validation images; of the best it is 4.9 points" in written.text
    facts = written.to_json()
    assert facts["within_one_standard_error"] == [2, 3]
    assert facts["standard_errors"]["0001"] == pytest.approx(error)
    assert json.loads(json.dumps(facts))["warning"] == written.warning
    page = (tmp_path / "report.html").read_text()
    assert page.count('<tr class="near">') == 2
    assert '<p class="warning">3 of 5 trials' in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text())))
    assert [row["within_one_standard_error"] for row in rows] == ["false", "false", "true", "true", "false"]
    assert float(rows[1]["standard_error"]) == pytest.approx(error)


@pytest.mark.parametrize(
    ("values", "counts", "near", "is_warned"),
    [
        ((0.60, 0.95, 0.95), (1000,) * 10, (2,), True),  # equal is equal, on any number of images
        ((0.60, 0.95, 0.94), (1000,) * 10, (), False),
        ((0.60, 0.95, 0.94), (5,) * 10, (2,), True),
        ((0.60, 0.61, 0.62, 0.63, 0.95, 0.94), (5,) * 10, (5,), False),  # two of six: marked, and a choice
        ((0.95,), (2,) * 10, (), False),
    ],
)
def test_more_images_or_larger_differences_decide(
    tmp_path: Path, values: tuple[float, ...], counts: tuple[int, ...], near: tuple[int, ...], is_warned: bool
) -> None:
    written = fill(tmp_path, values, counts)
    assert written.within_one_standard_error == near
    assert bool(written.warning) == is_warned


def test_unequal_classes_say_what_is_averaged(tmp_path: Path) -> None:
    written = fill(tmp_path, (0.5, 0.9), (98, 2))
    assert "Validation scores 100 images of 2 classes." in written.text
    assert "n = 7.8 = C²/Σ(1/n_c) over the classes that are averaged" in written.text


@pytest.mark.parametrize(("counts", "metric"), [((), "knn/mcr@5"), ((9, 9), "kmeans/nmi")])
def test_without_counts_or_a_share_the_report_has_values_alone(
    tmp_path: Path, counts: tuple[int, ...], metric: str
) -> None:
    written = fill(tmp_path, (0.5, 0.9, 0.9), counts, metric)
    assert (written.within_one_standard_error, written.warning, dict(written.standard_errors)) == ((), "", {})
    assert "| 0001 | 90.0 |" in written.text
    assert "standard error" not in written.text


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures as they are saved."""
    kept: list[Any] = []
    save = plots.save_figure

    def keep(pyplot: Any, figure: Any) -> bytes:
        figure.canvas.draw()
        kept.append(figure)
        return save(pyplot, figure)

    monkeypatch.setattr(plots, "save_figure", keep)
    return kept


@pytest.mark.parametrize("epochs", [1, 2, 3, 30])
def test_epochs_are_whole_numbers_and_the_pictures_mark_what_is_near(
    tmp_path: Path, figures: list[Any], epochs: int
) -> None:
    fill(tmp_path, (0.80, 0.95, 0.95, 0.60))
    trials = SweepFolder(tmp_path).trials()
    certainty = judge_certainty(trials, trials[1], "knn/mcr@5")
    reports = [
        Report(trial, epoch, 0.1 * epoch, stops=False) for trial in range(4) for epoch in range(1, epochs + 1)
    ]
    figures.clear()
    plots.plot_reports(trials, reports, "knn/mcr@5", 1, certainty)
    plots.plot_knobs(trials, {"training.lr": Knob(loguniform=(1e-4, 1e-2))}, "knn/mcr@5", certainty)
    learning, knobs = figures
    ticks = learning.axes[0].get_xticks()
    assert np.array_equal(ticks, np.round(ticks))
    for figure in (learning, knobs):
        assert "within one standard error" in [
            text.get_text() for text in figure.axes[0].get_legend().get_texts()
        ]
    curve = Curve("r", "r", [float(epoch) for epoch in range(epochs + 1)], [0.1] * (epochs + 1))
    axis = draw_curves([curve], "eval/knn/mcr@5", "epoch").axes[0]
    assert np.array_equal(axis.get_xticks(), np.round(axis.get_xticks()))
