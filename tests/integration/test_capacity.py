"""Nodes that come late and nodes that are lost, in a real Ray cluster: commands wait, and a run continues with fewer workers."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import GREY_16_PX, PROGRAM

from fsl_dist.training.checkpoint import CheckpointFolder, read_checkpoint
from fsl_dist.training.runlog import read_metrics
from index.base.scratch import scratch_folder
from index.base.settings import parse_overrides

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

KEEPER = """
import sys
from fsl_dist.training.ray.session import prepare_import
prepare_import()
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
print(cluster.address, flush=True)
nodes = []
for line in sys.stdin:
    if line.startswith("add"):
        nodes.append(cluster.add_node(num_cpus=int(line.split()[1])))
    else:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""

# In SGD at a small rate, the rounding of sums in another order does not grow.
TRAINING = [
    *GREY_16_PX,
    "data.flip=false",
    "data.decoder=torchvision",
    "backbone.name=conv4",
    "backbone.width=8",
    "backbone.batch_norm_group=12",
    "method.kind=cross_entropy",
    "training.batch_size=24",
    "training.optimizer=sgd",
    "training.lr=1e-4",
    "training.patience=0",
    "training.checkpoint_steps=2",
    "run.trackers=[]",
]


class Nodes:
    """A Ray cluster whose head has no CPUs, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(folder),
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.environment.pop("RAY_ADDRESS", None)
        with (folder / "keeper.log").open("w") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-c", KEEPER],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.environment["RAY_ADDRESS"] = self._say_after()

    def add(self, num_cpus: int) -> None:
        """Start a node."""
        self._order(f"add {num_cpus}")

    def lose(self) -> None:
        """Kill the processes of the newest node."""
        self._order("lose")

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command of fsl-dist in the cluster."""
        return subprocess.Popen(
            [PROGRAM, *command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._keeper.communicate(timeout=60)

    def _order(self, text: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(f"{text}\n")
        self._keeper.stdin.flush()
        assert self._say_after() == "done"

    def _say_after(self) -> str:
        assert self._keeper.stdout is not None
        for line in self._keeper.stdout:
            if line.startswith(("done", "127.", "1")):
                return line.strip()
        raise AssertionError("the cluster did not start")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with scratch_folder("fsl-c-") as folder:  # short, for Ray's sockets
        found = Nodes(folder)
        try:
            yield found
        finally:
            found.close()


@contextmanager
def running(nodes: Nodes, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = nodes.start(*command)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_commands_wait_for_nodes_that_come_late(nodes: Nodes, digits: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32))
    np.save(tmp_path / "y.npy", np.arange(200) % 5)
    base = parse_overrides([*TRAINING, f"data.dataset={digits}", "data.holdout_fraction=0.25"])
    base["training"] |= {"epochs": 1, "patience": 5}
    sweep = {
        "base": base,
        "dir": str(tmp_path / "sweep"),
        "space": {"training.lr": {"grid": [1e-3]}},
        "search": "grid",
        "trials": 1,
        "include_base": False,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    build = ["index", "build", "--vectors", tmp_path / "x.npy", "--labels", tmp_path / "y.npy"]
    train = ["train", *TRAINING, f"data.dataset={digits}", "training.epochs=1", "workers.num=2"]

    # Without time to wait it is a bad request, afterwards a failure.
    with running(nodes, *train, f"run.dir={tmp_path / 'refused'}") as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 2, errors
    assert "workers.num=2 with workers.cpus=1 needs 2 CPU cores; the Ray cluster has 0" in errors
    with running(
        nodes, *build, tmp_path / "failed", "--workers", "2", "--capacity-timeout-s", "3"
    ) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 1, errors
    assert errors.strip().splitlines()[-1].endswith("waited 3 s for it")

    commands = {
        "index": [*build, tmp_path / "index", "--workers", "2"],
        "run": [*train, f"run.dir={tmp_path / 'run'}"],
        "sweep": ["sweep", "run", "--config", tmp_path / "sweep.yaml"],
    }
    for command in commands.values():
        with running(nodes, *command, "--capacity-timeout-s", "120", "--json") as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "waiting up to" in line:
                    break
            else:
                raise AssertionError("".join(said))
            assert "the Ray cluster has 0" in said[-1]
            nodes.add(2)
            out, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
            assert "the cluster has it after" in errors
            assert json.loads(out)
            nodes.lose()
            time.sleep(6)  # until the head has noticed


def test_a_run_that_lost_a_node_continues_with_the_workers_there_are(
    nodes: Nodes, digits: Path, tmp_path: Path
) -> None:
    settings = [*TRAINING, f"data.dataset={digits}", "training.epochs=30", "workers.num=2"]
    nodes.environment["FSL_DIST_CAPACITY_TIMEOUT_S"] = "5"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    nodes.add(1)
    nodes.add(1)
    with running(nodes, "train", *settings, f"run.dir={whole}") as process:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    with running(nodes, "train", *settings, "workers.min=1", f"run.dir={cut}") as process:
        until = time.monotonic() + 100
        while not any(line.get("step", 0) >= 20 for line in read_metrics(cut)):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)
        nodes.lose()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "a worker failed" in errors
    assert "the cluster has room for 1 of workers.num=2 workers" in errors
    lines = [[line for line in read_metrics(run) if "train/loss" in line] for run in (whole, cut)]
    assert [line["step"] for line in lines[1]] == [line["step"] for line in lines[0]]
    assert [line["train/images_seen"] for line in lines[1]] == [
        line["train/images_seen"] for line in lines[0]
    ]
    weights = []
    for run in (whole, cut):
        latest = CheckpointFolder(run, keep=1, owner=None).latest()
        assert latest is not None
        weights.append(read_checkpoint(latest, torch.device("cpu")))
    _assert_close(weights[0].network, weights[1].network)


def _assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
