"""The configuration tree: round trip, rules between keys, what a run may be resumed with."""

from dataclasses import replace
from pathlib import Path

import pytest

from fsl_dist.config import (
    RunConfig,
    load_config,
    load_evaluation,
    parse_config,
    render_config,
    resolve_paths,
)
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.methods.pcn import PCNConfig
from fsl_dist.training.resume import check_resumable, settle

ROOT = Path(__file__).parents[2]
RUNS = [
    path
    for path in sorted((ROOT / "fsl_dist" / "experiments").rglob("[!_]*.yaml"))
    if path.name != "family.yaml" and path.parent.name not in ("tables", "sweeps")
]


def of(*overrides: str) -> RunConfig:
    return load_config(None, overrides)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_experiments_are_valid_and_round_trip(path: Path) -> None:
    config = load_config(path, [])
    assert parse_config(render_config(config), [], "again") == config


def test_experiments_write_out_what_depends_on_workers() -> None:
    for path in RUNS:
        assert load_config(path, []).episode.per_step > 0, path


def test_defaults_round_trip() -> None:
    config = of(
        "method.kind=pcn",
        "method.temperature=5.0",
        "training.schedule=milestones",
        "training.lr_milestones=[3,6]",
    )
    assert isinstance(config.method, PCNConfig)
    assert parse_config(render_config(config), [], "again") == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.kind=pcn", "method.temperature=2.0"], ["evaluation.delta_tau=-2", "above 0", "[0.0, 3.0]"]),
        (["method.kind=pcn", "mining.source=dataset"], ["mining.source=dataset", "deep_knn", "pcn"]),
        (["method.kind=deep_knn", "training.stop_metric=mca/base"], ["mca/base", "knn/mcr@5"]),
        (["training.stop_metric=knn/mcr@7"], ["knn/mcr@7", "knn/mcr@5"]),
        (["method.kind=pcn", "method.memory=1.0"], ["method.memory=1.0"]),
        (["method.margin=0.0"], ["method.margin"]),
        (["workers.num=0"], ["workers.num=0"]),
        (
            ["method.kind=pcn", "backbone.batch_norm=ghost", "backbone.batch_norm_group=8"],
            ["batch_norm_group=8", "n_way=10"],
        ),
        (
            ["method.kind=pcn", "training.chunk_size=64", "backbone.batch_norm_group=8"],
            ["batch_norm_group=8", "n_way=10"],
        ),
        (
            ["training.chunk_size=64", "backbone.batch_norm=batch"],
            ["backbone.batch_norm=batch", "training.chunk_size=64", "ghost or frozen"],
        ),
        (
            ["training.chunk_size=16"],
            ["training.chunk_size=16", "backbone.batch_norm_group=32", "batch_norm=frozen"],
        ),
        (["training.chunk_size=-1"], ["training.chunk_size=-1", "at least 0"]),
        (["mining.run=besides"], ["mining.run", "inline", "beside"]),
        (["mining.run=beside"], ["mining.run=beside", "mining.source=dataset"]),
        (
            ["mining.run=beside", "mining.source=dataset", "workers.launch=process"],
            ["mining.run=beside", "Ray", "workers.launch=process", "workers.launch=auto"],
        ),
        (
            ["mining.source=dataset", "mining.refresh_steps=10", "mining.refresh_lag=10"],
            ["mining.refresh_lag=10", "below mining.refresh_steps=10"],
        ),
        (
            ["method.kind=scatter", "method.scatter_weight=1.1"],
            ["method.scatter_weight=1.1", "at least 0 and at most 1"],
        ),
        (["method.kind=scatter", "method.distance=cosine"], ["method.distance", "euclidean", "squared"]),
        (
            ["method.kind=scatter", "episode.k_shot=1"],
            ["episode.k_shot=1", "scatter_weight=0.1", "k_shot=2 or more"],
        ),
        (["method.kind=scatter", "training.stop_metric=mca/base"], ["mca/base", "scatter", "kmeans/ca"]),
        (
            ["method.kind=scatter", "backbone.batch_norm=ghost", "backbone.batch_norm_group=8"],
            ["batch_norm_group=8", "n_way=10"],
        ),
        (["mining.actors=0"], ["mining.actors=0", "at least 1"]),
        (["mining.gpus=-1"], ["mining.gpus=-1"]),
    ],
)
def test_rules_between_keys(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        of(*overrides)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chunks_smaller_than_a_group_are_fine_where_there_are_no_groups() -> None:
    assert of("training.chunk_size=16", "backbone.batch_norm=frozen").training.chunk_size == 16
    assert of("training.chunk_size=32", "method.kind=pcn").training.chunk_size == 32


def test_a_network_that_starts_from_weights_has_no_groups_unless_they_are_asked_for() -> None:
    small = ["training.chunk_size=16", "backbone.pretrained=true"]
    assert of(*small).training.chunk_size == 16
    with pytest.raises(ConfigError, match=r"training\.chunk_size=16 is below backbone\.batch_norm_group=32"):
        of(*small, "backbone.batch_norm=ghost")


def test_a_resumed_run_keeps_its_batch_norm_without_its_weights() -> None:
    stored = settle(of("backbone.weights=first.pth", "run.dir=r"), version=1)
    assert stored.backbone.batch_norm == "frozen"
    assert check_resumable(of("run.dir=r"), stored).backbone.batch_norm == "frozen"
    with pytest.raises(RequestError, match=r"backbone\.batch_norm=ghost differs from the run's frozen"):
        check_resumable(of("run.dir=r", "backbone.batch_norm=ghost"), stored)
    # A run without weights takes none on the way, and stays what it was.
    plain = settle(of("run.dir=r"), version=1)
    assert plain.backbone.batch_norm == "auto"
    resumed = check_resumable(of("run.dir=r", "backbone.pretrained=true"), plain).backbone
    assert (resumed.batch_norm, resumed.starts_from_weights) == ("auto", False)


def test_stop_metric_follows_the_method() -> None:
    assert of("method.kind=pcn").stop_metric == "mca/base"
    assert of("evaluation.k_p=[1,5]").stop_metric == "knn/mcr@5"
    assert of("evaluation.k_p=[3]").stop_metric == "knn/mcr@3"
    assert of("method.kind=scatter").stop_metric == "kmeans/ca"
    assert of("method.kind=cross_entropy", "training.stop_metric=kmeans/ca").stops_by_clusters
    assert not of("method.kind=cross_entropy").stops_by_clusters


def test_episodes_of_one_image_a_class_have_cross_entropy_alone() -> None:
    assert of("method.kind=scatter", "episode.k_shot=1", "method.scatter_weight=0").episode.k_shot == 1


def test_evaluation_clusters_are_the_methods_unless_set() -> None:
    config = of("method.kind=pcn", "method.clusters=7", "evaluation.novel_clusters=2")
    assert (config.base_clusters, config.novel_clusters) == (7, 2)
    assert (of().base_clusters, of().novel_clusters) == (1, 1)


def test_only_evaluation_keys_change_after_training(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(render_config(of("run.dir=x")))
    assert load_evaluation(tmp_path, ["evaluation.k_p=[1]"]).k_p == (1,)
    with pytest.raises(ConfigError, match=r"training\.lr was fixed"):
        load_evaluation(tmp_path, ["training.lr=1.0"])


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve_paths(of("run.dir=runs/a", "data.dataset=d"))
    assert config.run.dir == str(tmp_path / "runs" / "a")
    assert config.data.dataset == str(tmp_path / "d")
    assert config.data.features == ""


def test_resuming_keeps_the_run_what_it_was() -> None:
    stored = settle(of("method.kind=pcn", "workers.num=3", "run.dir=r"), version=3)
    assert stored.episode.per_step == 3
    # Another number of workers, longer: the same episodes a step.
    resumed = check_resumable(
        of("method.kind=pcn", "workers.num=2", "run.dir=r", "training.epochs=200"), stored
    )
    assert (resumed.episode.per_step, resumed.data.version) == (3, 3)
    with pytest.raises(RequestError, match=r"method\.clusters=4 differs from the run's 10"):
        check_resumable(of("method.kind=pcn", "method.clusters=4", "run.dir=r"), stored)
    with pytest.raises(RequestError, match=r"run\.seed=1 differs from the run's 0"):
        check_resumable(replace(stored, run=replace(stored.run, seed=1)), stored)


def test_resuming_may_change_the_chunks_but_not_whether_there_are_any() -> None:
    """Whether there are chunks decides what batch_norm=auto means."""
    stored = settle(of("method.kind=pcn", "training.chunk_size=64", "run.dir=r"), version=1)
    smaller = of("method.kind=pcn", "training.chunk_size=32", "run.dir=r")
    assert check_resumable(smaller, stored).training.chunk_size == 32
    with pytest.raises(RequestError, match=r"training\.chunk_size=0 differs from the run's 64"):
        check_resumable(of("method.kind=pcn", "run.dir=r"), stored)
