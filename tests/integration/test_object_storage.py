"""pack → train → index → evaluate at s3://, by the commands, against a real server that is killed on the way."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from commands import PROGRAM
from PIL import Image
from sklearn.datasets import load_digits

from cluster.cli import fsl_dist
from index.base.errors import RequestError

pytestmark = pytest.mark.integration

SETTINGS = {
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
    "backbone": {"name": "conv4", "width": 8, "batch_norm_group": 6},
    "method": {"kind": "deep_knn"},
    "mining": {"source": "dataset"},
    "training": {
        "epochs": 4,
        "batch_size": 12,  # eight steps per epoch
        "patience": 9,
        "lr": 1e-3,
        "checkpoint_steps": 3,
        "schedule": "constant",  # a run is resumed here with fewer epochs, which a schedule would follow
        "warmup": 0,
    },
}


class Machine:
    """Runs commands, in this process or in one of their own, with working folders of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir()
        self.environment = {**environment, "FSL_DIST_CACHE": str(folder / "cache")}

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path) -> dict[str, Any]:
        """What a command's --json says."""
        with contextlib.chdir(self.folder):
            said = CliRunner(env=self.environment).invoke(fsl_dist, [*map(str, arguments), "--json"])
        if said.exception:
            raise said.exception
        assert list(self.folder.glob("s3*")) == []
        result: dict[str, Any] = json.loads(said.stdout)
        return result

    def run_folder(self, run: str) -> Path:
        """The working folder of a run's place."""
        (server,) = (self.folder / "cache" / "fsl-dist-objects").iterdir()
        return server / "s3" / run.removeprefix("s3://")

    def metrics_of(self, run: str) -> list[dict[str, Any]]:
        """A run's metrics, as far as they are written here."""
        if not (self.folder / "cache" / "fsl-dist-objects").is_dir():
            return []
        path = self.run_folder(run) / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for_steps(self, run: str, steps: int, process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + 200
        while not any(line["step"] >= steps for line in self.metrics_of(run)):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    helper = Path(__file__).parents[1] / "helpers" / "object_store.py"
    spec = importlib.util.spec_from_file_location("object_store", helper)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.ObjectStore(tmp_path_factory.mktemp("s3") / "journal")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scans, source = load_digits(), tmp_path_factory.mktemp("digits")
    rows = ["file,class,split"]
    for label in range(10):
        for position, member in enumerate(np.flatnonzero(scans.target == label)[:22]):
            scan = (scans.images[member] * (255 / 16)).astype(np.uint8)
            Image.fromarray(scan).save(source / f"{member}.png")
            rows.append(f"{member}.png,{label},{'train' if position < 12 else 'test'}")
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    (source / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    return source


def pack(machine: Machine, images: Path, out: str) -> dict[str, Any]:
    return machine.run("pack", images, out, "--table", images / "labels.csv", "--split-column", "split")


def train(images: Path, dataset: str, run: str, *more: str) -> list[str | Path]:
    return ["train", "--config", images / "run.yaml", f"data.dataset={dataset}", f"run.dir={run}", *more]


def work_through(machine: Machine, images: Path, place: str) -> tuple[dict[str, Any], ...]:
    """pack → train → index → search → evaluate; what each said, except for locations and times."""
    dataset, run, index = f"{place}/digits", f"{place}/run", f"{place}/index"
    packed = pack(machine, images, dataset)
    trained = machine.run(*train(images, dataset, run))
    built = machine.run("index", "build", run, dataset, index, "kind=ivf_flat", "nlist=4", "shards=2")
    machine.run("embed", run, dataset, "--out", f"{place}/vectors.npy")
    answers = machine.folder / "answers.npz"
    machine.run("index", "search", index, "--queries", f"{place}/vectors.npy", "--k", "5", "--out", answers)
    scores = machine.run("evaluate", run, "--index", index)
    with np.load(answers) as found:
        neighbours = {name: found[name].tolist() for name in ("ids", "distances")}
    return (
        {"fingerprint": packed["fingerprint"], "splits": packed["split_counts"]},
        {name: trained[name] for name in ("steps", "images_seen", "loss", "best_value")},
        {name: built[name] for name in ("version", "num_vectors", "size_bytes", "source")},
        neighbours,
        scores["metrics"],
    )


def test_the_whole_way_at_a_store_gives_what_it_gives_on_disk(
    store: Any, images: Path, tmp_path: Path
) -> None:
    remote = Machine(tmp_path / "remote", store.environment)
    place = f"s3://{store.bucket}/whole"
    found = work_through(remote, images, place)
    expected = work_through(Machine(tmp_path / "disk", {}), images, str(tmp_path / "place"))
    assert found == expected
    # Nothing of it is only on the one machine, and nothing reveals where it was or who may read it.
    other = Machine(tmp_path / "other", store.environment)
    assert other.run("evaluate", f"{place}/run", "--index", f"{place}/index")["metrics"] == found[-1]
    assert other.run("train", "--resume", f"run.dir={place}/run")["loss"] == found[1]["loss"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file())
    assert b"do-not-tell" not in written
    config = (other.run_folder(f"{place}/run") / "config.yaml").read_text()
    assert f"dir: {place}/run" in config
    assert str(tmp_path) not in config


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_training_is_waited_for(
    store: Any, images: Path, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "machine", store.environment)
    dataset = f"s3://{store.bucket}/killed/digits"
    pack(machine, images, dataset)
    whole = machine.run(*train(images, dataset, f"s3://{store.bucket}/killed/whole"))
    run = f"s3://{store.bucket}/killed/cut"
    process = machine.start(*train(images, dataset, run), "--json")
    machine.wait_for_steps(run, 8, process)
    store.kill()
    time.sleep(3)
    assert process.poll() is None
    store.start()
    out, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert said.count("does not answer") == said.count("answers again") == 1
    cut = json.loads(out)
    same = ("steps", "images_seen", "loss", "best_value")
    assert [cut[name] for name in same] == [whole[name] for name in same]


@pytest.mark.slow
def test_who_resumes_a_run_elsewhere_owns_it_and_a_killed_one_goes_on_there(
    store: Any, images: Path, tmp_path: Path
) -> None:
    first, second = (Machine(tmp_path / name, store.environment) for name in ("first", "second"))
    dataset, run = f"s3://{store.bucket}/owned/digits", f"s3://{store.bucket}/owned/run"
    pack(first, images, dataset)
    whole = first.run(*train(images, dataset, f"s3://{store.bucket}/owned/whole"))
    stale = first.start(*train(images, dataset, run, "training.epochs=1000"))
    first.wait_for_steps(run, 8, stale)
    stale.send_signal(signal.SIGSTOP)  # it seems dead
    resumed = second.run("train", "--resume", f"run.dir={run}", "training.epochs=4")
    stale.send_signal(signal.SIGCONT)
    _, said = stale.communicate(timeout=100)
    assert stale.returncode == 1
    assert "is owned by claim 2" in said or "was written by another process" in said
    assert resumed["loss"] == whole["loss"]
    steps = [line["step"] for line in second.metrics_of(run) if "train/loss" in line]
    assert steps == list(range(1, whole["steps"] + 1))
    third = Machine(tmp_path / "third", store.environment)
    assert third.run("train", "--resume", f"run.dir={run}")["loss"] == whole["loss"]


@pytest.mark.slow  # Ray starts
@pytest.mark.timeout(600)
def test_several_workers_train_at_a_store(store: Any, images: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", store.environment)
    dataset = f"s3://{store.bucket}/workers/digits"
    pack(machine, images, dataset)
    run = f"s3://{store.bucket}/workers/run"
    process = machine.start(*train(images, dataset, run, "training.epochs=2", "workers.num=2"), "--json")
    out, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    trained = json.loads(out)
    other = Machine(tmp_path / "other", store.environment)
    one = other.run(*train(images, dataset, f"{run}-of-one", "training.epochs=2"))
    assert trained["steps"] == one["steps"]
    # The first epoch is the same steps. In the second, sums in another order mine some other neighbours, as on a disk.
    of_two, of_one = (
        [line for line in place.metrics_of(name) if line["epoch"] == 0 and "train/loss" in line]
        for place, name in ((machine, run), (other, f"{run}-of-one"))
    )
    assert len(of_two) == trained["steps"] // 2
    for ours, theirs in zip(of_two, of_one, strict=True):
        assert ours["train/images_seen"] == theirs["train/images_seen"]
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-4)
    scores = [other.run("evaluate", name)["metrics"]["knn/acc@5"] for name in (run, f"{run}-of-one")]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


@pytest.mark.slow  # Ray starts twice
@pytest.mark.timeout(900)
def test_a_sweep_that_was_killed_goes_on_elsewhere(store: Any, images: Path, tmp_path: Path) -> None:
    first, second = (Machine(tmp_path / name, store.environment) for name in ("first", "second"))
    top = f"s3://{store.bucket}/sweeps"
    pack(first, images, f"{top}/swept")
    sweep = {
        "base": {**SETTINGS, "data": {**SETTINGS["data"], "dataset": f"{top}/swept"}},
        "space": {"training.lr": {"grid": [1e-3, 3e-3, 1e-2]}},
        "evaluation": {"k_p": [1, 3]},
        "search": "grid",
        "concurrency": 1,
        "include_base": False,
        "trials": 3,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = ["sweep", "run", "--config", tmp_path / "sweep.yaml", "--json"]
    whole = first.start(*command, f"dir={top}/whole")
    assert json.loads(whole.communicate(timeout=400)[0])["finished"] == 3
    wanted = first.run("sweep", "report", f"{top}/whole")
    # Killed once a trial has ended; another machine, which has nothing of it, resumes.
    cut = first.start(*command, f"dir={top}/cut")
    done = first.run_folder(f"{top}/cut") / "trials" / "0001" / "result.json"
    while not done.exists():
        assert cut.poll() is None, cut.communicate()[1]
        time.sleep(0.02)
    cut.kill()
    cut.communicate()
    resumed = second.start("sweep", "resume", f"{top}/cut", "--json")
    said, errors = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, errors
    assert json.loads(said)["finished"] == 3
    found = second.run("sweep", "report", f"{top}/cut")
    assert (found["best_trial"], found["best_value"]) == (wanted["best_trial"], wanted["best_value"])
    for name in ("evaluation.csv", "best.yaml"):
        texts = [
            (machine.run_folder(place) / name).read_text().replace("sweeps/cut", "sweeps/whole")
            for machine, place in ((first, f"{top}/whole"), (second, f"{top}/cut"))
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["index", "tune", "s3://bucket/index"],
            "fsl-dist index tune works only on a disk, not at s3://bucket/index",
        ),
        (["plot", "curves", "s3://bucket/run"], "fsl-dist plot works only on a disk, not at"),
        (["adopt", "s3://bucket/shards", "out"], "fsl-dist adopt works only on a disk, not at"),
        (["inspect", "data", "--plots=s3://bucket/p"], "--plots needs a path on a disk"),
        (["pack", "s3://bucket/images", "out"], "pack reads images from a disk"),
        (["inspect", "s3://no-such-bucket/data"], "does not exist; create the bucket first"),
        (["inspect", "az://bucket/data"], "is not a supported location"),
        (["train", "run.dir=s3://bucket"], "must name a bucket and a folder in it"),
    ],
)
def test_what_cannot_be_is_one_line_and_makes_no_folder(
    arguments: list[str], told: str, store: Any, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "machine", store.environment)
    with pytest.raises(RequestError, match=re.escape(told)) as error:
        machine.run(*arguments)
    assert "\n" not in str(error.value)
    assert list(machine.folder.iterdir()) == []
