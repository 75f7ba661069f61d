"""Sweeps of indexes: what may be varied, what is pruned, what is measured, which build is called the best."""

import csv
import io
import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cluster.commands.index import index_group
from index.base.errors import ConfigError, FslDistError, RequestError
from index.base.files import Owner
from index.base.settings import parse_yaml, validate
from index.config import IndexConfig
from index.search import open_index
from index.tune import Measurer, find_truth
from index.writing.build import build
from tune.index_sweeps.config import IndexSweepConfig
from tune.index_sweeps.plots import fastest_cells
from tune.index_sweeps.report import write_index_report
from tune.index_sweeps.sweep import drive_index_sweep, prepare_index_sweep
from tune.index_sweeps.trial import (
    TRUTH_FILE,
    SearchCell,
    best_cell,
    bytes_a_vector,
    check_point,
    read_cells,
    run_trial,
    write_labels,
)
from tune.records import SweepFolder
from tune.sweep_file import load_stored, load_sweep, render_sweep

DIM = 8


def gallery(num: int = 600) -> np.ndarray:
    """Vectors around 12 centres: float32 [num, DIM]."""
    rng = np.random.default_rng(3)
    centres = 3 * rng.standard_normal((12, DIM))
    return (centres[rng.integers(0, 12, num)] + rng.standard_normal((num, DIM))).astype(np.float32)


def true_neighbours(vectors: np.ndarray, metric: str, k: int) -> np.ndarray:
    """The k true neighbours of each vector without itself, by float64 differences or products: int64 [n, k]."""
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    costs = ((wide[:, None] - wide[None]) ** 2).sum(2) if metric == "l2" else -(wide @ wide.T)
    np.fill_diagonal(costs, np.inf)
    return np.argsort(costs, axis=1)[:, :k]


def load(folder: Path, text: str, *overrides: str) -> IndexSweepConfig:
    """A sweep of `folder`/x.npy, which is made where it is missing, in `folder`/sweep."""
    if not (folder / "x.npy").exists():
        np.save(folder / "x.npy", gallery())
    path = folder / "sweep.yaml"
    path.write_text(f"dir: {folder / 'sweep'}\n" + text.replace("x.npy", str(folder / "x.npy")))
    config = load_sweep(path, overrides)
    assert isinstance(config, IndexSweepConfig)
    return config


def silent(line: str) -> None:
    pass


INDEX = "index: {vectors: x.npy}\n"
SPACE = (
    "space: {kind: {grid: [ivf_flat, ivf_pq]}, nlist: {grid: [4, 8]}, pq_m: {grid: [0, 2]}}\nsearch: grid\n"
)
GRID = "evaluation: {nprobe: [1, 2, 99], k_factor: [1, 8]}\n"


def test_a_sweep_of_indexes_is_read_laid_over_and_written_back(tmp_path: Path) -> None:
    text = INDEX + "space: {index.kind: {choice: [ivf_flat, hnsw]}, index: {shards: {choice: [1, 2]}}}\n"
    config = load(tmp_path, text, "k=5", "index.metric=cosine", "evaluation.nprobe=[1,2]")
    assert list(config.space) == ["kind", "shards"]
    assert (config.k, config.index.metric, config.evaluation) == (5, "cosine", {"nprobe": (1, 2)})
    again = validate(IndexSweepConfig, parse_yaml(render_sweep(config), "written"), "written")
    assert again == config
    assert config.trial_config({"kind": "hnsw", "shards": 2}) == IndexConfig(
        kind="hnsw", metric="cosine", shards=2
    )
    assert config.trial_config({}) == IndexConfig(metric="cosine")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (INDEX, "space is empty: name what builds differ by"),
        ("index: {}\n" + SPACE, "index.vectors is required"),
        (INDEX + "space: {nprobe: {choice: [1]}}", "space.nprobe needs no build: put it under evaluation"),
        (INDEX + "space: {metric: {choice: [l2]}}", "space.metric is the same for all builds"),
        (INDEX + "space: {nlists: {choice: [4]}}", "did you mean nlist?"),
        (INDEX + "space: {nlist: {choice: [4, 4]}}", "names a value twice"),
        (INDEX + "space: {nlist: {randint: [4, 8]}}\nsearch: grid", "is a range, and search=grid needs"),
        (
            INDEX + "space: {nlist: {choice: [4, 8]}}",
            "no point of the space makes an index; the first error: ",
        ),
        (INDEX + SPACE + "evaluation: {pq_m: [1]}", "evaluation.pq_m needs a build: put it under space"),
        (INDEX + SPACE + "evaluation: {nprob: [1]}", "did you mean nprobe?"),
        (INDEX + SPACE + "evaluation: {nprobe: [0]}", "must be whole numbers of at least 1"),
        (INDEX + SPACE + "evaluation: {nprobe: [true]}", "must be whole numbers of at least 1"),
        (INDEX + SPACE + "evaluation: {nprobe: [2, 2]}", "must name different values"),
        (
            INDEX + SPACE + "evaluation: {ef_search: [2]}",
            "evaluation.ef_search moves nothing on kind=ivf_flat and kind=ivf_pq; it belongs to kind=hnsw and kind=factory",
        ),
        (INDEX + SPACE + "scheduler: asha", "scheduler belongs to sweeps of runs: a build is measured once"),
        (INDEX + SPACE + "resources: {cpus: 2}", "resources belongs to sweeps of runs: builds and searches"),
        (INDEX + SPACE + "concurrency: 2", "two would disturb each other's ms"),
        (INDEX + SPACE + "settings: {index.metric: l2}", "settings belongs to sweeps of runs"),
        (
            INDEX + SPACE + "metric: recall",
            "mode=min with metric=recall: the better index has the larger one",
        ),
        (INDEX + SPACE + "metric: latency", 'metric="latency" must be'),
        (INDEX + SPACE + "recall: 1.5", "recall=1.5 must be at least 0 and at most 1"),
        (INDEX + SPACE + "k: 0", "k=0 must be at least 1"),
        (INDEX + SPACE + "trials: 0", "trials=0 must be at least 1"),
        (INDEX + SPACE + "max_m: 1", "did you mean max_ms?"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_points_that_make_no_build_are_pruned_with_their_reason(tmp_path: Path) -> None:
    config = load(tmp_path, INDEX + SPACE)
    for point, words in (
        ({"kind": "ivf_pq", "nlist": 4, "pq_m": 3}, "index.pq_m=3 does not divide the vectors' dim=8"),
        ({"kind": "ivf_flat", "nlist": 16}, "clusters of fewer than 39 of 600 vectors, .* .at most 15, or 0"),
        ({"kind": "ivf_flat", "nlist": 4, "pq_m": 2}, "index.pq_m belongs to index.kind=ivf_pq"),
        ({"kind": "factory", "factory": "IVFx"}, "index.factory=IVFx is not a valid FAISS factory"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_point(config, point, tmp_path)
    assert check_point(config, {"kind": "ivf_flat", "nlist": 15}, tmp_path).nlist == 15
    with pytest.raises(RequestError, match=r"index.vectors=.*y.npy is not a file \(embed\(out=FILE\)"):
        check_point(load(tmp_path, INDEX + SPACE, f"index.vectors={tmp_path}/y.npy"), {}, tmp_path)


def test_the_grid_is_what_a_build_can_be_asked(tmp_path: Path) -> None:
    config = load(tmp_path, INDEX + SPACE + GRID)
    asked = config.search_settings({"nprobe": 1, "k_factor": 4}, "ivf_pq", 8)
    assert asked == [{"nprobe": p, "k_factor": f} for p, f in itertools.product((1, 2, 8), (1, 8))]
    asked = config.search_settings({"nprobe": 3, "k_factor": 1}, "ivf_flat", 2)
    assert asked == [{"nprobe": 1, "k_factor": 1}, {"nprobe": 2, "k_factor": 1}]
    assert config.search_settings({"ef_search": 64, "k_factor": 1}, "hnsw", 0) == [
        {"ef_search": 64, "k_factor": 1}
    ]
    assert config.search_settings({}, "flat", 0) == [{}]


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("at_once", [0, 7])
def test_recall_is_that_of_plain_loops(tmp_path: Path, metric: str, at_once: int) -> None:
    vectors, k = gallery(), 5
    ids = np.arange(len(vectors))
    for name, shards in (("one", 1), ("three", 3)):
        config = IndexConfig(kind="ivf_pq", nlist=8, pq_m=2, metric=metric, shards=shards)  # type: ignore[arg-type]
        build(tmp_path / name, vectors, ids % 4, config=config)
    one, three = (open_index(tmp_path / name) for name in ("one", "three"))
    truth = find_truth(one, k, sample=200, seed=5)
    asked = one.ids[truth.positions]
    true = true_neighbours(vectors, metric, k)[asked]
    recalls = []
    # What one build found to be true judges another of the same vectors.
    for index, parameters in itertools.product((one, three), ({"nprobe": 1, "k_factor": 1}, {"nprobe": 3})):
        found = index.search(vectors[asked], k, query_ids=asked, parameters=parameters).ids
        wanted = np.mean([len(set(a) & set(b)) / k for a, b in zip(found, true, strict=True)])
        measured = Measurer(index, truth, at_once=at_once)(parameters)
        assert measured.recall == pytest.approx(wanted, abs=1e-9)
        assert measured.seconds > 0
        recalls.append(measured.recall)
    assert recalls[0] < recalls[1] < 1
    assert Measurer(one, truth)({"nprobe": 8, "k_factor": 120}).recall == 1


def test_a_short_search_is_measured_by_its_fastest_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, gallery(), np.zeros(600, np.int64), config=IndexConfig(kind="ivf_flat"))
    index = open_index(tmp_path)
    truth = find_truth(index, 3, sample=50)
    took = iter([0.02, 0.02, 0.03, 0.01, 0.04])
    now = 0.0
    search = index.search

    def timed_search(*arguments, **options):
        nonlocal now
        now += next(took)
        return search(*arguments, **options)

    index.search = timed_search  # type: ignore[assignment,method-assign]
    monkeypatch.setattr("index.tune.time.perf_counter", lambda: now)
    assert Measurer(index, truth)({"nprobe": 2}).seconds == pytest.approx(0.02 / 50)
    # The first took less than 0.05 s, and so did the next two together: four searches, of which the third is the fastest.
    assert Measurer(index, truth, least_s=0.05)({"nprobe": 2}).seconds == pytest.approx(0.01 / 50)
    assert next(took, None) is None


def test_the_best_cell_is_the_best_of_those_that_count(tmp_path: Path) -> None:
    cells = [
        SearchCell({"nprobe": 1}, 0.90, 0.1, 16.0),
        SearchCell({"nprobe": 2}, 0.96, 0.3, 16.0),
        SearchCell({"nprobe": 4}, 0.99, 0.2, 16.0),
        SearchCell({"nprobe": 8}, 0.999, 2.0, 16.0),
    ]
    for over, wanted in (
        ([], 4),
        (["recall=0.5"], 1),
        (["metric=recall", "mode=max"], 8),
        (["metric=recall", "mode=max", "max_ms=1"], 4),
        (["metric=bytes"], 4),
        (["recall=1"], None),
        (["recall=0.95", "max_ms=0.15"], None),
    ):
        best = best_cell(load(tmp_path, INDEX + SPACE, *over), cells)
        assert (best.parameters["nprobe"] if best else None) == wanted, over
    assert [cell.parameters["nprobe"] for cell in fastest_cells(cells)] == [1, 4, 8]


def test_bytes_are_those_of_what_faiss_holds_and_of_what_is_compared(tmp_path: Path) -> None:
    vectors, labels = gallery(), np.zeros(600, np.int64)
    for kind, few, all_of_them in (
        ("ivf_flat", {"nprobe": 5}, {"nprobe": 6}),
        ("ivf_pq", {"nprobe": 5}, {"nprobe": 6}),
        ("hnsw", {"ef_search": 8}, {"ef_search": 600}),
    ):
        shape = {"hnsw_m": 2} if kind == "hnsw" else {"nlist": 6}
        config = IndexConfig(kind=kind, shards=2, **shape)  # type: ignore[arg-type]
        path = build(tmp_path / kind, vectors, labels, config=config)
        index, held = open_index(path), sum(f.stat().st_size for f in path.glob("shard-*.faiss"))
        assert held > 0
        assert bytes_a_vector(index, few) == pytest.approx(held / 600)
        # As good as flat, and as large: asked so, a search leaves FAISS's index aside.
        assert bytes_a_vector(index, all_of_them) == pytest.approx(held / 600 + 4 * DIM)
    assert bytes_a_vector(open_index(build(tmp_path / "flat", vectors, labels)), {}) == 4 * DIM


def run_sweep(config: IndexSweepConfig, **settings: bool) -> dict:
    summary = drive_index_sweep(config, show=silent, **settings)
    return {"finished": summary.finished, "failed": summary.failed, "pruned": summary.pruned}


@pytest.mark.integration
def test_a_sweep_measures_every_build_and_its_line_builds_the_best(tmp_path: Path) -> None:
    labels = np.arange(600) % 3
    np.save(tmp_path / "y.npy", labels)
    text = "index: {vectors: x.npy, labels: " + str(tmp_path / "y.npy") + "}\n" + SPACE + GRID
    config = load(tmp_path, text, "sample=150", "recall=0.9", "k=4")
    assert run_sweep(prepare_index_sweep(config)) == {"finished": 7, "failed": 0, "pruned": 2}
    folder = tmp_path / "sweep"
    assert not list(folder.glob("trials/*/index")), "an index is as large as its vectors"
    trials = {trial.number: trial for trial in SweepFolder(folder).trials()}
    assert read_cells(trials[0].folder)[0].recall == 1, "the base is flat"
    assert [cell.parameters for cell in read_cells(trials[1].folder)] == [
        {"nprobe": nprobe, "k_factor": 1} for nprobe in (1, 2, 4)
    ]
    assert len(read_cells(trials[8].folder)) == 6

    written = write_index_report(folder)
    scored = [trial for trial in trials.values() if trial.is_scored]
    wanted = min(scored, key=lambda trial: trial.result.value)  # type: ignore[union-attr,arg-type,return-value]
    assert (written.best_trial, written.base_value) == (wanted.number, trials[0].result.value)  # type: ignore[union-attr]
    line = next(line for line in written.text.split("\n") if line.startswith("    fsl-dist index build"))
    done = CliRunner().invoke(index_group, shlex.split(line)[2:])
    assert done.exit_code == 0, done.output
    best = best_cell(config, read_cells(wanted.folder))
    assert best is not None
    index = open_index(folder / "best")
    assert index.parameters == best.parameters
    truth = find_truth(index, config.k, config.sample, config.seed)
    assert Measurer(index, truth)({}).recall == best.recall
    rows = list(csv.DictReader(io.StringIO((folder / "evaluation.csv").read_text())))
    assert len(rows) == sum(len(read_cells(trial.folder)) for trial in trials.values())
    assert {row["counts"] for row in rows} == {"true", "false"}
    lines = list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text())))
    assert [row["state"] for row in lines].count("pruned") == 2
    assert float(lines[wanted.number]["recall"]) == best.recall
    assert "index.pq_m belongs to index.kind=ivf_pq" in written.text
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 2
    assert all(path.is_file() for path in written.files)


def test_what_building_alone_shows_prunes_and_another_error_fails(tmp_path: Path) -> None:
    text = INDEX + "space: {kind: {grid: [factory]}, factory: {grid: ['PQ2x10', 'PQ2x4']}}\nsearch: grid\n"
    config = prepare_index_sweep(load(tmp_path, text, "include_base=false"))
    # 600 vectors are too few for 1,024 codes, which FAISS says when it is trained.
    assert run_sweep(config) == {"finished": 1, "failed": 0, "pruned": 1}
    assert "cannot be trained on 600 vectors" in SweepFolder(Path(config.dir)).trials()[0].result.error  # type: ignore[union-attr]

    trial = SweepFolder(Path(config.dir)).start(9, 9, {"kind": "ivf_flat"})
    (trial.folder / "index").write_text("no folder")
    failed = run_trial(config, trial, Owner.claim(Path(config.dir)))
    assert failed.state == "failed"
    assert (trial.folder / "error.txt").read_text().startswith("Traceback")


def test_a_trial_that_takes_its_process_down_is_given_up(tmp_path: Path) -> None:
    config = load(tmp_path, INDEX + SPACE, "trials=1", "max_failures=0", "include_base=false")
    trial = SweepFolder(Path(config.dir)).start(1, 0, config.point(0))
    (trial.folder / "starts").write_bytes(b"...")
    with pytest.raises(FslDistError, match=r"trial 0001: cut off 3 times before its end: was the memory"):
        run_sweep(config)
    assert run_sweep(config, retry_failed=True) == {"finished": 1, "failed": 0, "pruned": 0}


def test_vectors_that_were_changed_are_not_measured_against_the_old_truth(tmp_path: Path) -> None:
    config = load(tmp_path, INDEX + SPACE + "trials: 1\n")
    run_sweep(config)
    (tmp_path / "sweep" / "trials" / "0001" / "result.json").unlink()
    np.save(tmp_path / "x.npy", gallery(500))
    with pytest.raises(
        RequestError, match=r"were changed since the sweep started: .* \(a sweep in a new dir"
    ):
        run_sweep(config)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(RequestError, match=r"x.npy is not a file"):
        run_sweep(config)


def test_the_truth_is_searched_once(tmp_path: Path) -> None:
    config = load(tmp_path, INDEX + SPACE + "trials: 1\n")
    owner = Owner.claim(Path(config.dir))
    write_labels(config, owner.folder)
    folder = SweepFolder(owner.folder)
    assert run_trial(config, folder.start(1, 0, config.point(0)), owner).state == "finished"
    path = owner.folder / TRUTH_FILE
    before = path.stat().st_mtime_ns
    # The truth decides the recall: with neighbours that are all nearer, nothing is found.
    held = dict(np.load(path))
    np.savez(path, **{**held, "last": np.full_like(held["last"], -1)})
    trial = folder.start(2, 0, config.point(0))
    assert run_trial(config, trial, owner).value is None
    assert {cell.recall for cell in read_cells(trial.folder)} == {0.0}
    assert path.stat().st_mtime_ns != before
    assert json.loads((owner.folder / "trials/0002/evaluation.json").read_text())["cells"]


def test_a_folder_of_a_sweep_is_refused_and_read(tmp_path: Path) -> None:
    config = load(tmp_path, INDEX + SPACE + "trials: 1\n")
    run_sweep(config)
    assert load_stored(Path(config.dir)) == config
    with pytest.raises(RequestError, match="already contains a sweep"):
        prepare_index_sweep(config)


@pytest.mark.integration
def test_optuna_goes_on_from_builds_that_do_not_count(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    config = load(
        tmp_path, INDEX + SPACE + GRID, "search=optuna", "trials=4", "recall=1", "include_base=false"
    )
    assert run_sweep(config)["finished"] == 4
