"""Jobs for real: detached processes here, and a Ray head of its own with a token; submitters killed and interrupted."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import PROGRAM
from page_scripts import ROOT, run_page, write_digits

from cluster.jobs.local import FOLDER_VARIABLE
from fsl_dist.training.runlog import read_metrics
from index.base.scratch import scratch_folder

pytestmark = pytest.mark.integration

TOKEN = "4f1c" * 16

RUN = {
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
    "backbone": {"name": "conv4", "width": 8},
    "method": {"kind": "pcn", "clusters": 2, "temperature": 1.0},
    "episode": {"n_way": 6, "k_shot": 4, "n_query": 3, "per_step": 1, "per_epoch": 8},
    "training": {"epochs": 2, "patience": 9, "lr": 1e-3},
    "evaluation": {"delta_tau": [0], "kmeans_runs": 2},
}
# Thousands of epochs: it runs until it is stopped.
ENDLESS = ["training.epochs=100000", "training.patience=0", "workers.launch=process"]


@dataclass(frozen=True)
class Place:
    """Where a test's jobs run: the options that name it, and the environment of its submitters."""

    options: list[str]
    environment: dict[str, str]

    def __call__(self, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `fsl-dist ARGUMENTS` to its end."""
        environment = {**self.environment, **more}
        return subprocess.run(
            [PROGRAM, *arguments], capture_output=True, text=True, timeout=500, env=environment
        )

    def job(self, verb: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `fsl-dist job VERB ARGUMENTS` there."""
        return self("job", verb, *self.options, *arguments)

    def state(self, name: str) -> dict:
        """What `job status` says."""
        found = self.job("status", name, "--json")
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    @contextmanager
    def following(self, name: str, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
        """`fsl-dist submit` under way, which follows its job."""
        line = [PROGRAM, "submit", *self.options, "--name", name, "--", *command]
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        ) as submitter:
            try:
                yield submitter
            finally:
                submitter.kill()


def write_run(folder: Path, dataset: Path) -> Path:
    """RUN over `dataset` as a file; its run.dir is `folder`/run."""
    path = folder / "run.yaml"
    data = {**RUN["data"], "dataset": str(dataset)}
    path.write_text(yaml.safe_dump({**RUN, "data": data, "run": {"dir": str(folder / "run")}}))
    return path


def wait_until(holds: Callable[[], bool], seconds: float = 280) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.1)


def num_steps(folder: Path) -> int:
    """Steps that the run in `folder` has logged."""
    return len(list(read_metrics(folder / "run"))) if (folder / "run").is_dir() else 0


def wait_for_training(folder: Path, submitter: subprocess.Popen[str]) -> None:
    """Return once a followed run has logged three epochs, so that it has checkpoints."""

    def trains() -> bool:
        assert submitter.poll() is None, submitter.communicate()
        return num_steps(folder) > 24

    wait_until(trains)


def environment_of(tmp: Path, **more: str) -> dict[str, str]:
    """This process's environment without its Ray and its home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "FSL_DIST_"))}
    return {
        **kept,
        "HOME": str(tmp),
        FOLDER_VARIABLE: str(tmp / "jobs"),
        "RAY_USAGE_STATS_ENABLED": "0",
        **more,
    }


@pytest.fixture
def local(tmp_path: Path) -> Place:
    """This machine, with a folder of jobs of its own."""
    return Place(["--to", "local"], environment_of(tmp_path))


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, Path]]:
    """A Ray head on loopback that asks for TOKEN: the URL of its dashboard, and the home folder of its jobs."""
    stack = ExitStack()
    scratch = stack.enter_context(scratch_folder("fsl-head-"))  # short, for Ray's sockets
    home = scratch / "home"
    home.mkdir()
    gcs, dashboard, agent, agent_grpc, client = free_ports(5)
    environment = environment_of(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, RAY_TMPDIR=str(scratch))
    environment["RAY_worker_niceness"] = "0"  # by default they give way to everything else on the machine
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats",
                "--num-cpus=4", f"--temp-dir={scratch}/s", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
                f"--ray-client-server-port={client}", "--object-store-memory=200000000",
            ],
            stdout=log, stderr=log, env=environment, cwd=scratch, start_new_session=True,
        )  # fmt: skip
    try:

        def answers() -> bool:
            assert process.poll() is None, (scratch / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", dashboard)) == 0

        wait_until(answers)
        yield f"http://127.0.0.1:{dashboard}", home
    finally:
        process.kill()  # asked to end, it waits half a minute for what it started, which is killed here
        process.wait(timeout=120)
        while left := processes_of(scratch):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        stack.close()


def processes_of(scratch: Path) -> list[int]:
    """Processes whose command line names the head's own folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(scratch).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, outside those that Ray gives to its workers (10002 to 19999)."""
    found: list[int] = []
    for port in range(21_000 + os.getpid() % 8000, 32_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no free ports")


@pytest.fixture
def ray(head: tuple[str, Path], tmp_path: Path) -> Place:
    """The Ray head, with its token."""
    return Place(["--to", "ray", "--address", head[0]], environment_of(tmp_path, RAY_AUTH_TOKEN=TOKEN))


def test_a_local_job_survives_its_submitter_and_is_stopped(
    digits: Path, tmp_path: Path, local: Place
) -> None:
    config = write_run(tmp_path, digits)
    with local.following("endless", "train", "--config", config, *ENDLESS) as submitter:
        wait_for_training(tmp_path, submitter)
        submitter.kill()
    steps = num_steps(tmp_path)
    wait_until(lambda: num_steps(tmp_path) > steps)
    assert local.state("endless")["state"] == "running"

    stopped = local.job("stop", "endless", "--json")
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout)["state"] == "stopped"
    steps = num_steps(tmp_path)
    followed = local.job("logs", "endless", "--follow")
    assert (followed.returncode, followed.stdout) == (143, "")
    assert "fsl-dist train" in followed.stderr
    assert "had ended already: stopped" in local.job("stop", "endless").stdout
    assert num_steps(tmp_path) == steps, "nobody trains any more"

    # The same command as another job resumes the run, as a retry does. It has passed the first epoch already.
    again = local(
        "submit", "--name", "again", "--", "train", "--config", config, *ENDLESS[1:], "training.epochs=1"
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["steps"] >= 16
    assert local.state("again")["result"] == json.loads(again.stdout)
    listed = json.loads(local.job("list", "--json").stdout)["jobs"]
    assert [(row["name"], row["state"]) for row in listed] == [("again", "succeeded"), ("endless", "stopped")]


def test_a_local_job_that_was_killed_has_failed(digits: Path, tmp_path: Path, local: Place) -> None:
    detached = local(
        "submit", "--detach", "--json", "--name", "killed", "--", "train", "--config", write_run(tmp_path, digits), *ENDLESS
    )  # fmt: skip
    assert json.loads(detached.stdout)["name"] == "killed"
    pid = json.loads((tmp_path / "jobs" / "killed" / "process.json").read_text())["pid"]
    os.killpg(pid, signal.SIGKILL)
    wait_until(lambda: local.state("killed")["state"] == "failed", 10)
    followed = local.job("logs", "killed", "--follow")
    assert followed.returncode == 1
    assert "killed: failed: its process ended without an exit code" in followed.stderr


def test_a_job_exits_as_its_command_does(tmp_path: Path, local: Place) -> None:
    refused = local("submit", "--name", "refused", "--", "evaluate", tmp_path / "none")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "refused: failed, exit code 2: " in refused.stderr
    assert local.state("refused")["message"].endswith("config.yaml is missing")
    assert "is not a run folder: config.yaml is missing" in local.job("logs", "refused").stdout
    found = json.loads(local.job("logs", "refused", "--json").stdout)
    assert found["log"] == local.job("logs", "refused").stdout
    for arguments, problem in (
        (["--name", "refused", "--", "doctor"], "a job refused exists on this machine"),
        (["--image", "x", "--", "doctor"], "--image needs --to kuberay; this is --to local"),
        (
            ["--to", "kuberay", "--wheel", "x", "--", "doctor"],
            "--wheel needs --to ray; this is --to kuberay",
        ),
        (["--", "train", "training.epoch=1"], "did you mean training.epochs?"),
    ):
        told = local("submit", *arguments)
        assert told.returncode == 2
        assert problem in told.stderr
        assert told.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["refused"]


def test_the_entrypoint_passes_sigterm_on(digits: Path, tmp_path: Path) -> None:
    """Kubernetes tells the container's first process alone."""
    run = write_run(tmp_path, digits)
    line = [PROGRAM, "job", "enter", "--config", run, "--", "train", *ENDLESS]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_training(tmp_path, process)
            process.terminate()
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (143, "")
    steps = num_steps(tmp_path)
    time.sleep(1)
    assert num_steps(tmp_path) == steps


@pytest.mark.timeout(600)
def test_a_job_on_ray_trains_sweeps_and_builds(digits: Path, tmp_path: Path, ray: Place) -> None:
    run, sweep = write_run(tmp_path, digits), tmp_path / "sweep.yaml"
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(40, 8)).astype(np.float32))
    np.save(tmp_path / "y.npy", np.arange(40) % 4)
    sweep.write_text(
        yaml.safe_dump(
            {
                "base": str(run),
                "dir": str(tmp_path / "sweep"),
                "space": {"method.memory": {"uniform": [0, 0.9]}},
                "trials": 1,
            }
        )
    )
    commands: dict[str, list[str | Path]] = {
        "train": ["train", "--config", run],
        "sweep": ["sweep", "run", "--config", sweep, "training.epochs=1"],
        "index": [
            "index", "build", "--vectors", tmp_path / "x.npy", "--labels", tmp_path / "y.npy", tmp_path / "index",
        ],
    }  # fmt: skip
    for name, command in commands.items():
        sent = ray("submit", *ray.options, "--name", name, "--detach", "--", *command)
        assert sent.returncode == 0, sent.stderr
        assert f"next: fsl-dist job logs {name} --follow --to ray" in sent.stdout
    # Their content travelled.
    run.unlink()
    sweep.unlink()
    results = {}
    for name in ("index", "train", "sweep"):
        followed = ray.job("logs", name, "--follow")
        assert followed.returncode == 0, followed.stderr
        assert "Running entrypoint" in followed.stderr
        assert "fsl-dist-result" not in followed.stderr
        results[name] = json.loads(followed.stdout)
        assert ray.state(name)["result"] == results[name]
    assert (results["train"]["run"], results["train"]["steps"]) == (str(tmp_path / "run"), 16)
    assert (results["sweep"]["dir"], results["sweep"]["finished"]) == (str(tmp_path / "sweep"), 2)
    assert (results["index"]["version"], results["index"]["num_vectors"]) == (1, 40)
    # One worker too goes through Ray Train there: the cluster's head may have no GPU.
    assert (tmp_path / "run" / "ray").is_dir()

    failed = ray("submit", *ray.options, "--name", "failed", "--", "evaluate", tmp_path / "none")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "failed: failed, exit code 2: " in failed.stderr
    assert "is not a run folder: config.yaml is missing" in failed.stderr.splitlines()[-1]
    listed = json.loads(ray.job("list", "--json").stdout)["jobs"]
    assert {"train", "sweep", "index", "failed"} <= {row["name"] for row in listed}
    taken = ray("submit", *ray.options, "--name", "train", "--", "doctor")
    assert taken.returncode == 2
    assert re.fullmatch(
        r"error: a job train exists at http://127.0.0.1:\d+ \(choose another --name; .*\)\n", taken.stderr
    )


def test_ctrl_c_leaves_a_job_on_ray_running(digits: Path, tmp_path: Path, ray: Place) -> None:
    run = write_run(tmp_path, digits)
    with ray.following("endless", "train", "--config", run, *ENDLESS) as submitter:
        wait_for_training(tmp_path, submitter)
        submitter.send_signal(signal.SIGINT)
        out, errors = submitter.communicate(timeout=60)
    assert (submitter.returncode, out) == (130, "")
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == (
        f"endless keeps running; follow it again: fsl-dist job logs endless --follow {' '.join(ray.options)}"
    )
    steps = num_steps(tmp_path)
    wait_until(lambda: num_steps(tmp_path) > steps)
    assert ray.state("endless")["state"] == "running"
    shown = ray("top", "--json", *ray.options)
    assert shown.returncode == 0, shown.stderr
    (job,) = (one for one in json.loads(shown.stdout)["jobs"] if one["name"] == "endless")
    assert job["progress"]["images_per_s"] > 0
    stopped = ray.job("stop", "endless")
    assert (stopped.returncode, stopped.stdout) == (0, "endless: stopped\n")
    steps = num_steps(tmp_path)
    assert ray.job("logs", "endless", "--follow").returncode == 143
    assert num_steps(tmp_path) == steps


class Wire:
    """A way to a port of this machine that can be cut: all its connections break, new ones are let through."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._carriers: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break what is open."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """Let nobody through any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for carrier in self._carriers:
            carrier.join(timeout=10)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    carrier = threading.Thread(target=self._carry, args=(source, sink), daemon=True)
                    carrier.start()
                    self._carriers.append(carrier)

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@pytest.mark.slow
def test_a_cut_connection_is_made_again_and_nothing_told_twice(
    digits: Path, tmp_path: Path, ray: Place, head: tuple[str, Path]
) -> None:
    wire = Wire(int(head[0].rpartition(":")[2]))
    through = Place(["--to", "ray", "--address", f"http://127.0.0.1:{wire.port}"], ray.environment)
    run, log = write_run(tmp_path, digits), tmp_path / "followed"

    def progress() -> list[str]:
        return [line for line in log.read_text().splitlines() if line.startswith("epoch ")]

    line = [PROGRAM, "submit", *through.options, "--name", "cut", "--", "train", "--config", run, *ENDLESS]
    try:
        with (
            log.open("w") as errors,
            subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, env=through.environment) as follower,
        ):  # fmt: skip
            for shown in (2, 4):  # a line in ten seconds
                wait_until(lambda shown=shown: len(progress()) >= shown)
                wire.cut()
            wait_until(lambda: len(progress()) >= 6)
            assert ray.job("stop", "cut").returncode == 0
            follower.communicate(timeout=120)
        assert follower.returncode == 143
        told = progress()
        assert len(set(told)) == len(told)
        assert told == [
            line for line in ray.job("logs", "cut").stdout.splitlines() if line.startswith("epoch ")
        ]
    finally:
        wire.close()


def test_a_cluster_that_does_not_let_in_is_told_in_one_line(ray: Place, tmp_path: Path) -> None:
    address = ray.options[-1]
    unused = f"http://127.0.0.1:{free_ports(1)[0]}"
    wait_until(
        lambda: ray.job("list", *ray.options).returncode == 0, 60
    )  # a head that has just started has no job API yet
    for options, environment, problem in (
        ([], {"RAY_AUTH_TOKEN": ""}, f"the Ray cluster at {address} asks for a token, and none was found (401): set RAY_AUTH_TOKEN"),
        ([], {"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "token"}, "asks for a token, and none was found (401)"),
        ([], {"RAY_AUTH_TOKEN": "wrong"}, f"the Ray cluster at {address} refuses the token (403)"),
        ([], {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/none"}, "RAY_AUTH_TOKEN_PATH=/none cannot be read"),
        (["--address", unused], {}, f"no Ray cluster answers at {unused} ([Errno 111] Connection refused)"),
        (["--address", "ftp://x"], {}, "--address ftp://x must be the URL of a Ray dashboard"),
    ):  # fmt: skip
        started = time.monotonic()
        told = ray("submit", *ray.options, *options, "--", "doctor", **environment)
        assert told.returncode == 2
        assert problem in told.stderr
        assert told.stderr.count("\n") == 1
        assert time.monotonic() - started < 30
    # A token in a file opens the door.
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    listed = ray("job", "list", *ray.options, RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert listed.returncode == 0, listed.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_of_a_ray_cluster(head: tuple[str, Path], tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "work")
    printed = run_page(
        ROOT / "docs" / "tutorials" / "ray_cluster.md",
        folder,
        HOME=str(tmp_path),
        RAY_API_SERVER_ADDRESS=head[0],
        RAY_AUTH_TOKEN=TOKEN,
    )
    assert "knn/acc@5" in printed
    assert (folder / "runs" / "first" / "checkpoints").is_dir()
    assert (folder / "runs" / "first" / "config.yaml").read_text(encoding="utf-8").count("num: 2") == 1


def test_what_never_fits_is_refused_and_what_no_retry_mends_is_stopped_for_good(ray: Place) -> None:
    line = ("submit", *ray.options, "--detach", "--", "index", "build", "r", "d", "i", "--workers", "9")
    # A head that has just started does not know its own node yet.
    wait_until(lambda: "asks for 9 times 1 CPUs" in ray(*line).stderr, 60)
    refused = ray(*line)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has 1 times 4 CPUs: 5 of them would wait forever" in refused.stderr
    # As on Kubernetes, where a job that has failed is tried again on a new cluster, and one that was stopped is not.
    entry = "cd ~ && python -P -m cluster.cli job enter --stop-retries -- evaluate /nowhere"
    program = (
        "from ray.job_submission import JobSubmissionClient as C;"
        f"C({ray.options[-1]!r}, headers={{'Authorization': 'Bearer {TOKEN}'}})"
        f".submit_job(entrypoint={entry!r}, submission_id='mended-by-none')"
    )
    subprocess.run([sys.executable, "-c", program], env=ray.environment, check=True, timeout=120)
    wait_until(lambda: ray.state("mended-by-none")["state"] not in ("pending", "running"), 120)
    assert ray.state("mended-by-none")["state"] == "stopped"
    log = ray.job("logs", "mended-by-none").stdout
    assert [line for line in log.splitlines() if line.startswith("error: ")]
    assert "fsl-dist-final: 2" in log.splitlines()
