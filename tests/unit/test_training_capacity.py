"""Waiting for a cluster's nodes, and how many workers a smaller cluster has room for; no Ray runs here."""

import contextlib
import dataclasses
import logging
import threading

import pytest

from fsl_dist.config import RunConfig
from fsl_dist.errors import CapacityError, ConfigError, FslDistError, RequestError
from fsl_dist.training.config import WorkersConfig
from fsl_dist.training.ray import capacity, train
from fsl_dist.training.ray.capacity import TIMEOUT_VARIABLE, capacity_timeout_s, wait_for_capacity
from index.base.stopping import Stopped, StopRequest


class Growing:
    """A cluster that has room at the `enough`th look."""

    def __init__(self, enough: int) -> None:
        self.looks, self.enough = 0, enough

    def check(self) -> str:
        self.looks += 1
        if self.looks < self.enough:
            raise CapacityError(f"needs 2 CPU cores; the Ray cluster has {self.looks}")
        return "room"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
    monkeypatch.setattr(capacity, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(capacity, "_SAY_EVERY_S", 0.05)


def test_what_is_waited_for_is_said_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Growing(30)
    with caplog.at_level(logging.WARNING):
        assert wait_for_capacity(cluster.check, timeout_s=20) == "room"
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "waiting up to 20 s for the cluster: needs 2 CPU cores; the Ray cluster has 1"
    assert 2 <= len([line for line in said if line.startswith("waiting")]) < 15
    assert said[-1].startswith("the cluster has it after ")


def test_nothing_is_said_where_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    assert wait_for_capacity(Growing(1).check, timeout_s=20) == "room"
    assert caplog.records == []


def test_a_request_that_does_not_wait_is_refused_and_one_that_waited_fails() -> None:
    with pytest.raises(RequestError, match=r"the Ray cluster has 1$"):
        wait_for_capacity(Growing(9).check)
    with pytest.raises(FslDistError, match=r"the Ray cluster has \d+; waited 0 s for it") as failed:
        wait_for_capacity(Growing(900).check, timeout_s=0.05)
    assert not isinstance(
        failed.value, RequestError
    )  # a job that failed is tried again, a bad request is not


def test_a_smaller_request_is_tried_when_the_time_is_over() -> None:
    assert wait_for_capacity(Growing(900).check, timeout_s=0.05, otherwise=lambda: "less") == "less"
    with pytest.raises(FslDistError, match="waited"):
        wait_for_capacity(Growing(900).check, timeout_s=0.05, otherwise=Growing(900).check)


def test_a_stop_ends_the_wait() -> None:
    stop = StopRequest()
    threading.Timer(0.1, stop.ask, [15]).start()
    with pytest.raises(Stopped):
        wait_for_capacity(Growing(9000).check, timeout_s=20, stop=stop)


@pytest.mark.parametrize(("text", "seconds"), [("", 7.0), ("0", 0.0), ("12.5", 12.5)])
def test_the_environment_says_how_long(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    assert capacity_timeout_s(7.0) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_another_text_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    with pytest.raises(RequestError, match=f"{TIMEOUT_VARIABLE}={text} must be a number of seconds"):
        capacity_timeout_s()


def config(**workers: object) -> RunConfig:
    return dataclasses.replace(RunConfig(), workers=WorkersConfig(**workers))  # type: ignore[arg-type]


def nodes(monkeypatch: pytest.MonkeyPatch, *shares: dict[str, float]) -> None:
    """Let Ray report these nodes, and one that is lost."""
    import ray

    alive = [{"Alive": True, "Resources": share} for share in shares]
    lost = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, lost])
    total = {name: sum(share.get(name, 0.0) for share in shares) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: {name: n for name, n in total.items() if n})


def fit(run: RunConfig, *, needs_gpu: bool = False) -> tuple[int, bool]:
    sized, use_gpu = train._fit_to_cluster(run, StopRequest(), 0.02, needs_gpu=needs_gpu)
    return sized.workers.num, use_gpu


def test_a_run_continues_with_the_workers_that_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(num=4, min=2, cpus=2)
    nodes(monkeypatch, {"CPU": 0.0}, {"CPU": 8.0})
    assert fit(run) == (4, False)
    nodes(monkeypatch, {"CPU": 5.0}, {"CPU": 3.0})  # 8 cores, of which no worker uses two
    assert train._count_fitting(run, needs_gpu=False) == 3
    nodes(monkeypatch, {"CPU": 3.0}, {"CPU": 3.0})
    assert fit(run) == (2, False)
    nodes(monkeypatch, {"CPU": 3.0})
    with pytest.raises(
        FslDistError, match=r"workers\.num=4 with workers\.cpus=2 needs 8 CPU cores; .* has 3"
    ):
        fit(run)
    with pytest.raises(FslDistError, match=r"workers\.num=4"):
        fit(config(num=4, cpus=2))  # no minimum: never fewer


def test_a_run_on_gpus_never_continues_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    run = config(num=2, min=1)
    nodes(monkeypatch, {"CPU": 8.0})
    with pytest.raises(FslDistError, match=r"workers\.num=2 needs a GPU each; the Ray cluster has 0"):
        fit(run, needs_gpu=True)
    nodes(monkeypatch, {"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0})
    assert fit(run, needs_gpu=True) == (1, True)


def test_a_fit_waits_for_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsl_dist.training.ray import session
    from tune.fit.flow import _find_machine

    sizes = iter([(0.0, 0.0), (0.0, 0.0), (6.0, 0.0)])
    monkeypatch.setattr(session, "prepare_import", lambda: True)  # a cluster is joined
    monkeypatch.setattr(session, "ray_session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(session, "cluster_size", lambda: next(sizes))
    monkeypatch.setenv(TIMEOUT_VARIABLE, "20")
    found = _find_machine(contextlib.ExitStack())
    assert 1 < found.slots * found.cpus <= 6
    monkeypatch.setattr(session, "cluster_size", lambda: (0.0, 0.0))
    monkeypatch.delenv(TIMEOUT_VARIABLE)
    with pytest.raises(CapacityError, match="the Ray cluster has no CPU core for trials"):
        _find_machine(contextlib.ExitStack())


def test_a_minimum_above_the_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"workers\.min=3 is above workers\.num=2"):
        config(num=2, min=3)
