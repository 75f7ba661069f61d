"""A thread per tracker of a run: it follows the run's metrics file and sends new lines.

The file is the record, and the tracker a copy of it, for any location of the workers. A failing tracker causes one
warning; a hanging one is abandoned at the run's end after `FLUSH_S`. `RUN/trackers.json` contains each tracker's
identifier and progress:

    {"mlflow": {"place": "http://…", "id": "…", "sent": [step, 0 for a step's line or 1 for a validation's]}}
"""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsl_dist.config import RunConfig
from fsl_dist.errors import RequestError, StaleOwnerError
from fsl_dist.training.runlog import METRICS_FILE, LineReader
from fsl_dist.training.trackers.tracker import Ending, Fact, Kind, TrackedRun, Tracker
from index.base.checksums import decode_line
from index.base.extras import require
from index.base.files import exists, write_atomic
from index.base.object_cache import bring
from index.base.settings import dump

log = logging.getLogger(__name__)

IDS_FILE = "trackers.json"
SEND_EVERY_S = 2.0
"""seconds between two checks of the metrics file"""
FLUSH_S = 15.0
"""seconds that a run waits at its end for its trackers"""
FLUSH_AGAIN_S = 1.0
"""the same for a tracker that did not answer in time before, in this process: a sweep has many trials"""
OPEN_S = 15.0
"""seconds that a sweep waits at its start for its own entry, under which the entries of its trials are grouped"""

_ids_lock = threading.Lock()
_unanswered: set[Kind] = set()
"""trackers that did not answer in time at the end of the last run of this process"""


def kinds_of(config: RunConfig) -> tuple[Kind, ...]:
    """Trackers that a run is sent to by threads; TensorBoard's files are written with the metrics."""
    return tuple(kind for kind in config.run.trackers if kind != "tensorboard")


def check_trackers(config: RunConfig) -> None:
    """Raise RequestError for a tracker whose package is missing, or that has nowhere to send to. Sends nothing."""
    for kind in kinds_of(config):
        try:
            require(kind)
        except RequestError as error:
            raise RequestError(f"run.trackers={kind}: {error}") from error
        if kind == "wandb":
            from fsl_dist.training.trackers.wandb_tracker import find_obstacle

            if reason := " ".join(find_obstacle().split()):
                raise RequestError(f"run.trackers=wandb cannot send to Weights & Biases: {reason}")
        else:
            _check_mlflow(TrackedRun(folder=Path(config.run.dir), name=""))


def _check_mlflow(tracked: TrackedRun) -> None:
    """Raise RequestError where MLFLOW_TRACKING_URI is of no kind that MLflow knows."""
    from fsl_dist.training.trackers.mlflow_tracker import tracking_uri

    uri = tracking_uri(tracked)
    scheme = uri.partition(":")[0]
    known = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
    if ":" in uri and scheme.partition("+")[0] not in known:
        raise RequestError(
            f"run.trackers=mlflow: MLFLOW_TRACKING_URI={_without_password(uri)} must start with one of "
            f"{', '.join(known)} (MLFLOW_TRACKING_URI=http://HOST:5000 is a server)"
        )


@contextmanager
def tracking(config: RunConfig, sweep: Path | None = None) -> Iterator[dict[str, Fact]]:
    """Send a run's metrics to its trackers during the block,
    and at its end the facts that the block added to the yielded mapping.

    sweep: folder of the sweep that the run is a trial of.
    """
    tracked = describe_run(config, sweep)
    senders = [Sender(kind, tracked, metrics=tracked.folder / METRICS_FILE) for kind in kinds_of(config)]
    with ending(senders) as facts:
        yield facts


@contextmanager
def ending(senders: Sequence["Sender"]) -> Iterator[dict[str, Fact]]:
    """End the entries with the block, and send the facts that it added; an error in the block marks them as failed."""
    facts: dict[str, Fact] = {}
    try:
        yield facts
    except StaleOwnerError:
        # The newer process sends to the same entry.
        for sender in senders:
            sender.leave()
        raise
    except BaseException as error:
        end_all(senders, facts, "failed" if isinstance(error, Exception) else "killed")
        raise
    end_all(senders, facts, "finished")


def add_facts(config: RunConfig, facts: Mapping[str, Fact], sweep: Path | None = None) -> None:
    """Add what became known after a run's end, such as its scores, to its entries."""
    tracked = describe_run(config, sweep)
    end_all([Sender(kind, tracked) for kind in kinds_of(config)], facts, "finished")


def describe_run(config: RunConfig, sweep: Path | None) -> TrackedRun:
    """A run as its trackers know it: called as its folder, a trial also as its sweep."""
    folder = Path(config.run.dir).absolute()
    sweep = sweep.absolute() if sweep else None
    name = f"{sweep.name} {folder.name}" if sweep else folder.name
    return TrackedRun(folder=folder, name=name, config=dump(config), sweep=sweep)


def end_all(senders: Sequence["Sender"], facts: Mapping[str, Fact], ending: Ending) -> None:
    """End the entries, all at the same time, and wait at most `FLUSH_S` for them."""
    for sender in senders:
        sender.end(facts, ending)
    started = time.monotonic()
    for sender in senders:
        patience_s = FLUSH_AGAIN_S if sender.kind in _unanswered else FLUSH_S
        sender.wait(max(0.0, started + patience_s - time.monotonic()))


class Sender:
    """Keeps one tracker's entry of a run up to date, in a separate thread."""

    def __init__(self, kind: Kind, tracked: TrackedRun, *, metrics: Path | None = None) -> None:
        """metrics: the metrics file to follow; None: only facts are sent."""
        self.kind = kind
        self.tracked = tracked
        self._metrics = metrics
        self._reader = LineReader(metrics) if metrics else None
        self._is_over = threading.Event()
        self._is_open = threading.Event()
        self._left = False
        self._end: tuple[Mapping[str, Fact], Ending] | None = None
        self._sent = (-1, 0)
        # A daemon: a server that does not answer must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"tracker-{kind}", daemon=True)
        self._thread.start()

    def end(self, facts: Mapping[str, Fact], ending: Ending) -> None:
        """Let the thread send the rest and end the entry; returns at once."""
        self._end = dict(facts), ending
        self._is_over.set()

    def leave(self) -> None:
        """Send nothing more and leave the entry open."""
        self._left = True
        self._is_over.set()

    def wait_until_open(self, timeout_s: float) -> None:
        """Wait until the tracker has an entry for the run, or has failed, but no longer than this."""
        self._is_open.wait(timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Wait until all is sent, but no longer than this."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._left = True
            self._warn("it did not answer in time at the end of the run")
            _unanswered.add(self.kind)
        else:
            _unanswered.discard(self.kind)

    def _run(self) -> None:
        try:
            tracker = self._open()
            self._is_open.set()
            while not self._is_over.wait(SEND_EVERY_S):
                self._send(tracker)
            if self._end is not None and not self._left:
                if self._metrics is not None:  # workers on other machines may have written it
                    bring(self._metrics.parent, wanted=lambda name: name == METRICS_FILE)
                self._send(tracker)
                tracker.end(*self._end)
        except BaseException as error:  # a third-party client may raise anything, even SystemExit
            if not self._left:
                self._warn(f"{type(error).__name__}: {error}")
        finally:
            self._is_open.set()

    def _open(self) -> Tracker:
        known = read_ids(self.tracked.folder).get(self.kind, {})
        place = _place_of(self.kind, self.tracked)
        if known.get("place") != place:
            known = {}
        self._sent = tuple(known.get("sent", self._sent))
        tracker: Tracker
        if self.kind == "mlflow":
            from fsl_dist.training.trackers.mlflow_tracker import MlflowTracker

            parent = read_ids(self.tracked.sweep).get("mlflow", {}) if self.tracked.sweep else {}
            is_of_trial = self.tracked.is_trial and parent.get("place") == place
            tracker = MlflowTracker(
                self.tracked, known.get("id", ""), parent.get("id", "") if is_of_trial else ""
            )
        else:
            from fsl_dist.training.trackers.wandb_tracker import WandbTracker

            tracker = WandbTracker(self.tracked, known.get("id", ""))
        self._note({"place": place, "id": tracker.id, "sent": self._sent})
        if self._reader is not None:
            log.info("run.trackers=%s: %s", self.kind, tracker.address)
        return tracker

    def _send(self, tracker: Tracker) -> None:
        if self._reader is None:
            return
        new = []
        for text in self._reader.read():
            line = decode_line(text.decode(), str(self._metrics))
            place = (line["step"], int(any(name.startswith("eval/") for name in line)))
            # A resumed run writes lines again that it had written after its checkpoint: they are the same.
            if place > self._sent:
                new.append(line)
                self._sent = place
        if new:
            tracker.log(new)
            self._note({"sent": self._sent})

    def _note(self, entry: dict[str, Any]) -> None:
        with _ids_lock:
            ids = read_ids(self.tracked.folder)
            ids[self.kind] = {**ids.get(self.kind, {}), **entry}
            write_atomic(self.tracked.folder / IDS_FILE, (json.dumps(ids) + "\n").encode())

    def _warn(self, reason: str) -> None:
        words = _without_password(" ".join(reason.split()))[:300]
        log.warning(
            "run.trackers=%s: nothing more is sent, %s; the run's folder has all metrics", self.kind, words
        )


def read_ids(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of `trackers.json`; empty if the file is missing or unreadable."""
    path = folder / IDS_FILE
    with suppress(ValueError):
        if exists(path):
            return json.loads(path.read_text("utf-8"))
    return {}


def _place_of(kind: Kind, tracked: TrackedRun) -> str:
    """The location of a tracker's entries: an identifier is only valid there."""
    if kind == "mlflow":
        from fsl_dist.training.trackers.mlflow_tracker import tracking_uri

        return _without_password(tracking_uri(tracked))
    from fsl_dist.training.trackers.wandb_tracker import project_place

    return project_place()


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)
