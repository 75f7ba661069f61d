"""Metrics as gauges of Ray: their names, what is reported and when, and nothing outside Ray."""

import math
import time

import pytest

from fsl_dist.training.ray import gauges
from fsl_dist.training.ray.gauges import Gauges, gauge_name, open_gauges


def test_names_are_those_of_prometheus() -> None:
    assert gauge_name("train/loss") == "fsl_dist_train_loss"
    assert gauge_name("eval/knn/acc@5") == "fsl_dist_eval_knn_acc_at_5"
    assert gauge_name("eval/mca/base-novel") == "fsl_dist_eval_mca_base_novel"


def test_nothing_is_reported_outside_ray() -> None:
    import sys

    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        pytest.skip("another test has connected this process to Ray")
    assert open_gauges({"run": "a"}) is None


def test_the_newest_values_are_reported_again_and_again_until_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[tuple[str, float, dict[str, str]]] = []

    class Gauge:
        """What Ray's gauge is asked to do."""

        def __init__(self, name: str, label_names: tuple[str, ...]) -> None:
            self.name, self.label_names = name, label_names

        def set(self, value: float, labels: dict[str, str]) -> None:
            assert tuple(labels) == self.label_names
            reported.append((self.name, value, labels))

    monkeypatch.setattr(gauges, "RESEND_S", 0.02)
    monkeypatch.setattr(Gauges, "_gauge", lambda _, name, labels: Gauge(name, labels))
    opened = Gauges({"run": "a"})
    opened.set({"train/loss": 3.0})
    opened.set({"train/loss": 2.0, "train/lr": math.nan})
    opened.set({"sweep/trials": 4}, state="failed")
    opened.set({"sweep/trials": 5}, state="running")
    deadline = time.monotonic() + 10
    while len(reported) < 7:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    opened.close()
    number = len(reported)
    assert ("train/loss", 2.0, {"run": "a"}) in reported
    assert ("sweep/trials", 4, {"run": "a", "state": "failed"}) in reported
    assert ("sweep/trials", 5, {"run": "a", "state": "running"}) in reported
    assert "train/lr" not in {name for name, _, _ in reported}, "not a number"
    time.sleep(0.1)
    assert len(reported) == number
