"""Trackers: what they are sent, what is refused before a run, and a run that is resumed. W&B writes offline and is read back."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from wandb_files import read_offline

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import LineReader, read_metrics
from fsl_dist.training.trackers.mlflow_tracker import valid_name
from fsl_dist.training.trackers.sending import IDS_FILE, check_trackers, kinds_of


@pytest.fixture(scope="module")
def features(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row of numbers a sample, so that a run takes a moment."""
    labels = Catalogue.open(digits).labels
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("features") / "x.npy"
    np.save(path, (rng.normal(size=(10, 8))[labels] + rng.normal(size=(len(labels), 8))).astype(np.float32))
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B sends nothing, and reads no key of the person who runs the tests."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name, folder in (("NETRC", "netrc"), ("WANDB_CONFIG_DIR", "config"), ("WANDB_CACHE_DIR", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def settings(digits: Path, features: Path, run: Path, trackers: str = "wandb", epochs: int = 2) -> RunConfig:
    return load_config(
        None,
        [
            f"data.dataset={digits}",
            f"data.features={features}",
            f"run.dir={run}",
            f"run.trackers=[{trackers}]",
            "backbone.name=mlp",
            "backbone.hidden=[16,8]",
            "training.batch_size=60",
            f"training.epochs={epochs}",
        ],
    )


def sent_rows(run: Path) -> dict[int, dict[str, float]]:
    """What metrics.jsonl has of each step, without its times, which differ where a step is taken again."""
    rows: dict[int, dict[str, float]] = {}
    for line in read_metrics(run):
        rows.setdefault(line["step"], {}).update(
            {name: value for name, value in line.items() if name != "step" and not name.startswith("time/")}
        )
    return rows


def shown_rows(run: Path) -> dict[int, dict[str, float]]:
    """What W&B has of each step, of all starts of the run; a value that came twice is an error."""
    rows: dict[int, dict[str, float]] = {}
    for start in read_offline(run):
        for row in start.rows:
            step = row["_step"]
            values = {name: value for name, value in row.items() if not name.startswith(("_", "time/"))}
            twice = set(rows.setdefault(step, {})) & set(values) - {"epoch"}
            assert not twice, (step, twice)
            rows[step] |= values
    return rows


@pytest.mark.usefixtures("offline")
def test_a_run_at_wandb_has_its_settings_its_metrics_and_its_end(
    digits: Path, features: Path, tmp_path: Path
) -> None:
    config = settings(digits, features, tmp_path / "run")
    summary = train_run(config)
    (shown,) = read_offline(tmp_path / "run")
    assert (shown.name, shown.group, shown.project, shown.exit_code) == ("run", "", "fsl-dist", 0)
    assert shown.config["training"]["epochs"] == 2
    assert shown.config["data"]["version"] == 1  # as the run was settled, not as it was asked for
    assert shown_rows(tmp_path / "run") == sent_rows(tmp_path / "run")
    assert shown.summary["report/best_value"] == summary.best_value
    assert shown.summary["report/checkpoint"] == summary.checkpoint
    assert Path(summary.checkpoint).is_dir()
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.usefixtures("offline")
def test_a_resumed_run_continues_its_entry_and_repeats_no_step(
    digits: Path, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def stop(epoch: int, value: float) -> bool:
        if epoch == 3:
            raise KeyboardInterrupt  # past the checkpoint of epoch 2: the epoch is retrained
        return False

    config = settings(digits, features, run, epochs=5)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, watch=stop)
    time.sleep(1)  # W&B calls a folder by the second and the identifier
    train_run(config, resume=True)
    first, second = read_offline(run)
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert first.id == second.id == json.loads((run / IDS_FILE).read_text())["wandb"]["id"]
    assert shown_rows(run) == sent_rows(run)
    assert max(row["_step"] for row in first.rows) > 0


@pytest.mark.usefixtures("offline")
def test_another_project_gets_the_whole_run(
    digits: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("WANDB_PROJECT", "first")
    train_run(settings(digits, features, run))
    monkeypatch.setenv("WANDB_PROJECT", "second")
    train_run(settings(digits, features, run, epochs=3), resume=True)
    first, second = sorted(read_offline(run), key=lambda start: start.project)
    assert (first.project, second.project) == ("first", "second")
    assert first.id != second.id
    assert [row["_step"] for row in second.rows] == sorted(sent_rows(run))


@pytest.mark.usefixtures("offline")
def test_a_run_that_fails_ends_as_failed(digits: Path, features: Path, tmp_path: Path) -> None:
    def fail(epoch: int, value: float) -> bool:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match=r"^no$"):
        train_run(settings(digits, features, tmp_path / "run"), watch=fail)
    (shown,) = read_offline(tmp_path / "run")
    assert shown.exit_code == 1


@pytest.mark.usefixtures("offline")
def test_a_tracker_that_refuses_the_run_costs_a_warning(
    digits: Path,
    features: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    config = settings(digits, features, run)
    train_run(config)
    ids = json.loads((run / IDS_FILE).read_text())
    ids["wandb"]["id"] = "no/such"
    (run / IDS_FILE).write_text(json.dumps(ids))
    caplog.clear()
    summary = train_run(settings(digits, features, run, epochs=3), resume=True)
    assert summary.epochs == 3
    warned = [record.getMessage() for record in caplog.records if "run.trackers" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("run.trackers=wandb: nothing more is sent, ")
    assert "\n" not in warned[0]


@pytest.mark.usefixtures("offline")
def test_a_project_that_wandb_refuses_is_told_before_anything_is_written(
    digits: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    config = settings(digits, features, tmp_path / "run")
    for is_read_anew in (True, False):  # W&B reads the environment once
        monkeypatch.setenv("WANDB_PROJECT", "no/such" if is_read_anew else "valid")
        wandb.teardown()
        if not is_read_anew:
            wandb.setup()
            monkeypatch.setenv("WANDB_PROJECT", "no/such")
        with pytest.raises(
            RequestError, match=r"run\.trackers=wandb .*Invalid project name 'no/such'"
        ) as caught:
            train_run(config)
        assert "\n" not in str(caught.value)
    wandb.teardown()
    assert not (tmp_path / "run").exists()


def test_nothing_is_sent_unless_asked() -> None:
    config = RunConfig()
    assert config.run.trackers == ("tensorboard",)
    assert kinds_of(config) == ()
    check_trackers(config)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("[wandb, mlflow, wandb]", r"run\.trackers=\['wandb', 'mlflow', 'wandb'\] names wandb twice"),
        ("[mlflo]", r"must be tensorboard, mlflow or wandb .*; did you mean mlflow\?"),
        ("mlflow", r"run\.trackers=\"mlflow\" must be a list"),
    ],
)
def test_wrong_names_are_refused(named: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [f"run.trackers={named}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_missing_package_is_told_before_anything_is_written(
    digits: Path, features: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = settings(digits, features, tmp_path / "run", package)
    with pytest.raises(RequestError, match=rf"^run\.trackers={package}: .*fsl-dist\[{package}\]"):
        train_run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("mode", "key", "message"),
    [
        ("online", "", "there is no API key .*WANDB_MODE=offline"),
        ("online", "short", "WANDB_API_KEY invalid: "),
        ("offline", "", ""),
        ("disabled", "", ""),
        ("online", "k" * 40, ""),
    ],
)
def test_wandb_without_a_key_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, key: str, message: str
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    if not key:
        monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()  # W&B reads the environment once
    try:
        config = load_config(None, ["run.trackers=[wandb]", f"run.dir={tmp_path / 'run'}"])
        if message:
            with pytest.raises(RequestError, match=message) as caught:
                check_trackers(config)
            assert "\n" not in str(caught.value)
        else:
            check_trackers(config)
    finally:
        wandb.teardown()


def test_trackers_are_no_part_of_what_a_run_is(digits: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(settings(digits, features, run, ""))
    assert not (run / "tensorboard").exists()
    config = settings(digits, features, run, "tensorboard", epochs=3)
    assert train_run(config, resume=True).epochs == 3
    assert (run / "tensorboard").is_dir()


def test_lines_are_read_once_and_a_replaced_file_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = LineReader(path)
    assert reader.read() == []
    path.write_bytes(b"a\nb\nha")
    assert reader.read() == [b"a", b"b"]
    with path.open("ab") as file:
        file.write(b"lf\n")
    assert reader.read() == [b"half"]
    assert reader.read() == []
    (tmp_path / "new").write_bytes(b"a\n")
    (tmp_path / "new").replace(path)
    assert reader.read() == [b"a"]


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("train/loss", "train/loss"),
        ("knn/mcr@5", "knn/mcr_at_5"),
        ("mca/base;dtau=-0.5", "mca/base_dtau_-0.5"),
        ("balanced_recall@10/base", "balanced_recall_at_10/base"),
    ],
)
def test_metric_names_fit_mlflow(name: str, valid: str) -> None:
    assert valid_name(name) == valid
