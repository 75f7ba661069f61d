"""A run's YAML with a `base`, and `method.kind=…` on the command line over a file of another kind."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import fsl_dist
from cluster.jobs.command import read_command, resolve_command
from fsl_dist.config import load_config, parse_config, render_config
from fsl_dist.errors import ConfigError
from fsl_dist.shipped import EXPERIMENTS, list_configs
from index.base.settings import lay_over, parse_yaml, validate
from index.config import IndexConfig
from tune.sweep_file import load_sweep

BASE = """
run: {seed: 3}
method: {kind: pcn, clusters: 6, temperature: 4.0}
training: {epochs: 7, schedule: milestones, lr_milestones: [2, 4]}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_is_laid_over_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "shared/_base.yaml", BASE)
    run = write(
        tmp_path,
        "mine/run.yaml",
        "base: ../shared/_base.yaml\nmethod: {clusters: 2}\ntraining: {lr_milestones: [5]}",
    )
    monkeypatch.chdir(
        tmp_path / "shared"
    )  # a base is found from the file's folder, not from the working folder
    config = load_config(run, ["training.epochs=9"])
    assert (config.run.seed, config.training.epochs, config.training.lr_milestones) == (3, 9, (5,))
    assert (
        config.method
        == load_config(None, ["method.kind=pcn", "method.clusters=2", "method.temperature=4.0"]).method
    )
    assert "base" not in parse_yaml(render_config(config), "again")
    assert parse_config(render_config(config), [], "again") == config


def test_a_shipped_configuration_can_be_the_base(tmp_path: Path) -> None:
    run = write(tmp_path, "run.yaml", "base: omniglot/pcn\ntraining: {epochs: 2}")
    # omniglot/pcn has a base itself, so its text is no base.
    with pytest.raises(ConfigError, match=r"^base=omniglot/pcn has base=_base\.yaml itself"):
        load_config(run, [])
    run.write_text("base: own-images\ntraining: {epochs: 2}")
    assert load_config(run, []) == load_config(EXPERIMENTS / "own-images.yaml", ["training.epochs=2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: 3", r"^base=3 must be the path or the name of a run's YAML file \(.*run\.yaml\)$"),
        (
            "base: own-image",
            r"^base: own-image is neither a YAML file .* did you mean own-images.*run\.yaml\)$",
        ),
        (
            "base: two.yaml",
            r"^base=two\.yaml has base=own-images itself, and bases are one level deep: .*run\.yaml\)$",
        ),
        (
            "base: one.yaml\ntraining: {epoch: 3}",
            r"unknown key training\.epoch in .*run\.yaml with base=one\.yaml",
        ),
        ("base: one.yaml\nepisode: 3", r"^episode=3 must be a mapping .*run\.yaml with base=one\.yaml\)$"),
    ],
)
def test_refusals_of_a_base(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "one.yaml", BASE)
    write(tmp_path, "two.yaml", "base: own-images")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, "run.yaml", text), [])
    assert "\n" not in str(caught.value)


def test_a_base_is_no_system_and_no_shipped_configuration_warns(caplog: pytest.LogCaptureFixture) -> None:
    assert (EXPERIMENTS / "sd198" / "_base.yaml").is_file()
    names = list_configs()
    assert not [name for name in names if "_base" in name]
    for name in names:
        if not name.startswith("sweeps/"):
            load_config(Path(name), [])
    assert not caplog.records


def test_a_job_and_a_sweep_carry_what_the_base_says(tmp_path: Path) -> None:
    write(tmp_path, "_base.yaml", BASE + "evaluation: {delta_tau: [0]}")
    run = write(tmp_path, "run.yaml", "base: _base.yaml\ntraining: {epochs: 8}")
    command = read_command(fsl_dist, ["train", "--config", str(run), "method.kind=deep_knn", "run.seed=1"])
    here = load_config(run, command.settings)
    _, text = resolve_command(command, is_elsewhere=True)
    assert parse_config(text, command.settings, "there") == here
    sweep = write(
        tmp_path,
        "sweep.yaml",
        f"dir: s\nbase: {run}\nspace: {{training.lr: {{choice: [0.1, 0.2]}}}}\ntrials: 2",
    )
    assert load_sweep(sweep).base.training.epochs == 8
    _, text = resolve_command(
        read_command(fsl_dist, ["sweep", "run", "--config", str(sweep)]), is_elsewhere=True
    )
    (tmp_path / "there").mkdir()
    sent = write(tmp_path, "there/sweep.yaml", text)
    before = load_sweep(sweep)
    run.unlink()
    assert load_sweep(sent) == before


def test_another_kind_drops_what_only_the_files_kind_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write(
        tmp_path, "run.yaml", "method: {kind: deep_knn, k_same: 7, margin: 0.7}\ntraining: {epochs: 2}"
    )
    config = load_config(run, ["method.kind=batch_hard"])
    assert (config.method.kind, config.method.margin, config.training.epochs) == ("batch_hard", 0.7, 2)  # type: ignore[union-attr]
    assert [(r.levelno, r.name, r.message) for r in caplog.records] == [
        (
            logging.WARNING,
            "index.base.settings",
            f"method.kind=batch_hard drops what belongs to method.kind=deep_knn in {run}: method.k_same",
        )
    ]
    caplog.clear()
    assert load_config(run, ["method.kind=deep_knn"]).method == load_config(run, []).method
    assert not caplog.records
    with pytest.raises(
        ConfigError,
        match=r"^method\.k_same belongs to method\.kind=deep_knn; this run has method\.kind=batch",
    ):
        load_config(run, ["method.kind=batch_hard", "method.k_same=3"])
    # A key that no kind takes is not taken for one of the old kind.
    run.write_text("method: {kind: deep_knn, k_sane: 7}")
    with pytest.raises(ConfigError, match=r"unknown key method\.k_sane"):
        load_config(run, ["method.kind=batch_hard"])


def test_mining_of_the_data_set_belongs_to_deep_knn(caplog: pytest.LogCaptureFixture) -> None:
    own = Path("ham10000/deep-knn-dataset")
    assert load_config(own, ["method.kind=scatter"]).mining.source == "batch"
    assert "method.k_same, method.m_other" in caplog.text
    assert caplog.messages[-1].startswith(
        "method.kind=scatter mines no data set and drops mining.source=dataset in"
    )
    assert load_config(own, ["method.kind=deep_knn"]).mining.source == "dataset"
    with pytest.raises(ConfigError, match=r"^mining\.source=dataset belongs to method\.kind=deep_knn"):
        load_config(own, ["method.kind=scatter", "mining.source=dataset"])


def test_the_kind_of_a_file_that_names_none_is_the_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write(tmp_path, "run.yaml", "method: {k_same: 7}")
    assert load_config(run, ["method.kind=cross_entropy"]).method.kind == "cross_entropy"
    assert "method.kind=deep_knn" in caplog.text


def test_other_kinds_of_index_and_of_scheduler_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write(tmp_path, "run.yaml", "index: {kind: ivf_pq, nlist: 8, pq_m: 4, shards: 2, hnsw_m: 0}")
    assert load_config(run, ["index.kind=ivf_flat"]).index == IndexConfig(kind="ivf_flat", nlist=8, shards=2)
    assert caplog.messages == [
        f"index.kind=ivf_flat drops what belongs to index.kind=ivf_pq in {run}: index.pq_m"
    ]
    laid = lay_over(IndexConfig, {"kind": "hnsw", "hnsw_m": 8}, {"kind": "flat"}, "the index")
    assert validate(IndexConfig, laid, "x") == IndexConfig()
    assert "kind=flat drops what belongs to kind=hnsw in the index: hnsw_m" in caplog.text
    text = "dir: s\nbase: ham10000-features/deep-knn\nsettings: {training.patience: 3}\nscheduler: {kind: asha, reduction: 2}\nspace: {training.lr: {choice: [1, 2]}}"
    sweep = write(tmp_path, "sweep.yaml", text)
    assert load_sweep(sweep, ["scheduler.kind=none", "method.kind=cross_entropy"]).scheduler.kind == "none"
    assert "scheduler.kind=none drops what belongs to scheduler.kind=asha" in caplog.text
    assert "method.kind=cross_entropy drops what belongs to method.kind=deep_knn" in caplog.text


def test_the_command_line_says_it_on_stderr(tmp_path: Path) -> None:
    run = write(tmp_path, "run.yaml", "method: {kind: deep_knn, k_same: 7}\ndata: {dataset: nowhere}")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cluster.cli",
            "train",
            "--config",
            str(run),
            "method.kind=cross_entropy",
            "run.dir=x",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    notice, error = done.stderr.splitlines()
    assert (
        notice
        == f"method.kind=cross_entropy drops what belongs to method.kind=deep_knn in {run}: method.k_same"
    )
    assert error.startswith("error: data set 'nowhere'")
