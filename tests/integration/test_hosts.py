"""Three hosts, really: network namespaces with addresses of their own, a Ray node in each, one cut off while it trains."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import GREY_16_PX

from fsl_dist.training.runlog import read_metrics
from index.base.scratch import scratch_folder
from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

BIN = Path(sys.executable).parent
PORT = 6391
TRAINING = [
    *GREY_16_PX,
    "data.flip=false",
    "data.decoder=torchvision",
    "backbone.name=conv4",
    "backbone.width=16",
    "method.kind=pcn",
    "method.clusters=2",
    "method.temperature=1.0",
    "episode.n_way=5",
    "episode.k_shot=4",
    "episode.n_query=3",
    "episode.per_step=2",
    "training.patience=0",
    "evaluation.delta_tau=[0]",
    "workers.cpus=1",
]


class Hosts:
    """Hosts 1, 2, … on one switch, each in a network namespace; they share this machine's files, as hosts share a volume."""

    def __init__(self, scratch: Path) -> None:
        self._tag = secrets.token_hex(4)  # an interface name has at most 15 characters
        self._scratch = scratch
        self._network = f"10.{77 + os.getpid() % 100}.{os.getpid() % 250}"
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._names: list[str] = []
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.environment.pop(
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None
        )  # no loopback: these are several machines
        self._bridge = f"fslb{self._tag}"
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")

    def address(self, host: int) -> str:
        return f"{self._network}.{host}"

    def add(self, host: int, num_cpus: int) -> None:
        """A new host, and a Ray node on it; the first is the head."""
        name, port, inside = f"fsl{self._tag}-{host}", f"fslv{self._tag}{host}", f"fslw{self._tag}{host}"
        _ip("netns", "add", name)
        self._names.append(name)
        _ip("link", "add", port, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", name)
        _ip("link", "set", port, "master", self._bridge)
        _ip("link", "set", port, "up")
        for words in (
            ["addr", "add", f"{self.address(host)}/24", "dev", inside],
            ["link", "set", inside, "up"],
        ):
            _ip("-n", name, *words)
        _ip("-n", name, "link", "set", "lo", "up")
        place = (
            ["--head", f"--port={PORT}", "--include-dashboard=false"]
            if host == 1
            else [f"--address={self.address(1)}:{PORT}"]
        )
        folder = self._scratch / str(host)
        with (self._scratch / f"{host}.log").open("wb") as log:
            self._nodes[host] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, BIN / "ray", "start", "--block", *place),
                    f"--node-ip-address={self.address(host)}",
                    f"--temp-dir={folder}",
                    f"--num-cpus={num_cpus}",
                    "--object-store-memory=200000000",
                    "--disable-usage-stats",
                ],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def cut_off(self, host: int) -> None:
        """Pull the host's cable: its processes live on and reach nobody."""
        _ip("link", "set", f"fslv{self._tag}{host}", "down")

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Run a command on host 1, as one of its cluster."""
        return subprocess.Popen(
            ["ip", "netns", "exec", f"fsl{self._tag}-1", *command],
            env={**self.environment, "RAY_ADDRESS": f"{self.address(1)}:{PORT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str | Path) -> str:
        """Stdout of a command on host 1."""
        running = self.start(*command)
        out, errors = running.communicate(timeout=600)
        assert running.returncode == 0, errors
        return out

    def alive(self) -> list[str]:
        """Addresses of the nodes that the cluster takes for alive."""
        code = (
            "import ray, json; ray.init(log_to_driver=False, logging_level='ERROR'); "
            "print(json.dumps([n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']]))"
        )
        return sorted(json.loads(self.run(sys.executable, "-c", code).splitlines()[-1]))

    def close(self) -> None:
        """End every process that lives in a namespace, and take the network away."""
        for name in self._names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for process in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), 9)
        for node in self._nodes.values():
            node.wait()
        for name in self._names:
            _ip("netns", "del", name)
        _ip("link", "del", self._bridge)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """A head that runs nothing, and two hosts of one core each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("hosts of their own need network namespaces: root and iproute2")
    stack = contextlib.ExitStack()
    scratch = stack.enter_context(scratch_folder("fsl-h-"))  # short, for Ray's sockets
    try:
        found = Hosts(scratch)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespaces: {error.stderr}")
    try:
        found.add(1, 0)
        time.sleep(8)  # the head must listen before others join; they give up at once where it does not
        found.add(2, 1)
        found.add(3, 1)
        wait_until(lambda: len(found.alive()) == 3, 90, "three nodes")
        yield found
    finally:
        found.close()
        stack.close()


def test_three_hosts_train_and_search_as_one_does(hosts: Hosts, digits: Path, tmp_path: Path) -> None:
    def train(name: str) -> list[str | Path]:
        where = [f"run.dir={tmp_path / name}", f"data.dataset={digits}"]
        return [BIN / "fsl-dist", "train", *where, *TRAINING, "training.epochs=2", "episode.per_epoch=8"]

    hosts.run(*train("three"), "workers.num=2")
    alone(*train("one"))
    losses = {
        name: np.array([line["train/loss"] for line in read_metrics(tmp_path / name) if "train/loss" in line])
        for name in ("three", "one")
    }
    assert len(losses["one"]) == 8
    np.testing.assert_allclose(losses["three"], losses["one"], rtol=0, atol=1e-4)

    # An index of two shards; an actor takes the one core of a host, so each is searched where the other is not.
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 16)).astype(np.float32)
    build(tmp_path / "index", vectors, np.arange(400) % 7, config=IndexConfig(shards=2))
    np.save(tmp_path / "q.npy", vectors[:50])
    code = f"""
import json, numpy as np, ray
from index.actors.client import open_ray_index
ray.init(log_to_driver=False, logging_level="ERROR")
with open_ray_index({str(tmp_path / "index")!r}, num_actors=2, num_cpus=1) as index:
    found = index.search(np.load({str(tmp_path / "q.npy")!r}), 5)
    print(json.dumps(found.ids.tolist()))
"""
    answer = json.loads(hosts.run(sys.executable, "-c", code).splitlines()[-1])
    assert answer == open_index(tmp_path / "index").search(vectors[:50], 5).ids.tolist()


def test_the_work_of_a_host_that_is_cut_off_goes_on_elsewhere(
    hosts: Hosts, digits: Path, tmp_path: Path
) -> None:
    # So small a rate that rounding does not grow: with one worker sums are in another order.
    settings = [
        *TRAINING,
        "training.lr=1e-5",
        "training.epochs=12",
        "episode.per_epoch=60",
        f"data.dataset={digits}",
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    alone(BIN / "fsl-dist", "train", f"run.dir={whole}", *settings)
    running = hosts.start(
        BIN / "fsl-dist", "train", f"run.dir={cut}", *settings, "workers.num=2", "workers.timeout_s=20"
    )
    try:
        wait_until(lambda: len(read_metrics(cut)) > 70, 300, "the third epoch")
        hosts.cut_off(3)
        hosts.add(4, 1)  # what an operator or an autoscaler does for a host that is gone
        _, errors = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert "a worker failed" in errors
    assert hosts.address(3) not in hosts.alive()
    losses = [
        {line["step"]: line["train/loss"] for line in read_metrics(run) if "train/loss" in line}
        for run in (whole, cut)
    ]
    assert losses[0].keys() == losses[1].keys()
    np.testing.assert_allclose(list(losses[1].values()), list(losses[0].values()), rtol=0, atol=1e-4)


def alone(*command: str | Path) -> None:
    """Run a training command on this machine by one worker: the same steps, the same episodes."""
    subprocess.run([*command, "workers.num=1"], check=True, capture_output=True, timeout=600)


def wait_until(holds: object, seconds: float, what: str) -> None:
    """Return once `holds()` is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():  # type: ignore[operator]
            return
        time.sleep(0.5)
    raise AssertionError(f"no {what} within {seconds:g} s")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
