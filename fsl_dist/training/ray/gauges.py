"""The newest metrics of a run or sweep as Ray's gauges, which each node of a Ray cluster exports for Prometheus.

The metric `train/loss` becomes `ray_fsl_dist_train_loss`. Outside Ray nothing is exported.
"""

import math
import re
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

PREFIX = "fsl_dist_"
RESEND_S = 2.0
"""seconds between two reports of the values: Ray drops a gauge that is not set again within two of its own intervals,
20 s by default, so the series of a run end with it"""


def gauge_name(metric: str) -> str:
    """The gauge of a metric; `eval/knn/acc@5` becomes `fsl_dist_eval_knn_acc_at_5`."""
    return PREFIX + re.sub(r"\W+", "_", metric.replace("@", "_at_"))


class Gauges:
    """Values that are reported to Ray until `close`, by a separate thread. Setting one costs an assignment.

    Args:
        labels: of every value, such as the folder of the run.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._gauges: dict[str, Gauge] = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._report, name="gauges", daemon=True)
        self._thread.start()

    def set(self, values: Mapping[str, float], **labels: str) -> None:
        """Replace values by the metric's name; `labels` are added to those of all. A metric keeps its label names."""
        added = tuple(labels.items())
        with self._lock:
            self._values.update({(name, added): value for name, value in values.items()})

    def close(self) -> None:
        """Report nothing more; Ray drops the series soon."""
        self._is_over.set()
        self._thread.join()

    def _report(self) -> None:
        while not self._is_over.wait(RESEND_S):
            with self._lock:
                values = list(self._values.items())
            for (name, added), value in values:
                if math.isfinite(value):
                    labels = {**self._labels, **dict(added)}
                    self._gauge(name, tuple(labels)).set(value, labels)

    def _gauge(self, metric: str, label_names: tuple[str, ...]) -> "Gauge":
        if metric not in self._gauges:
            from ray.util.metrics import Gauge

            self._gauges[metric] = Gauge(gauge_name(metric), f"{metric} of a run or sweep", label_names)
        return self._gauges[metric]


def open_gauges(labels: Mapping[str, str]) -> Gauges | None:
    """Gauges with these labels; None in a process that is not connected to Ray."""
    ray = sys.modules.get("ray")
    return Gauges(labels) if ray is not None and ray.is_initialized() else None
