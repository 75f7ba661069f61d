"""Searches of a service without pause while its index changes and its replicas fail, each answer compared with an exact search.

A `Shadow` knows every state that the index has had, as plain arrays, and when. An answer is right where it is the exact answer of a state
that was current while it was asked for, or within `LAG_S` before.
"""

import ctypes
import http.client
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sweep_processes import descendants

from index import changes
from index.config import IndexConfig
from index.search import open_index
from index.versions import find_version, list_versions, read_manifest
from index.writing.build import build
from index.writing.merging import merge
from index.writing.writer import IndexWriter

DIM, NUM_LABELS, K = 12, 15, 7
LAG_S = 20.0
ANSWERED_WITHIN_S = 100.0
"""a client asks again until then; a replica that hangs is replaced sooner"""
_PIDFD_GETFD = 438


@dataclass
class State:
    """What the index holds from some moment on."""

    version: int
    ids: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    since_s: float
    """before the change that led here was begun"""
    until_s: float = np.inf
    """after the change that led away was acknowledged"""


class Shadow:
    """The index at `path` as arrays, changed along with it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._states: list[State] = []
        self._of_version: dict[int, State] = {}
        self.num_changes: Counter[str] = Counter()
        self.publish()

    @property
    def latest(self) -> State:
        """What the index holds now."""
        return self._states[-1]

    def between(self, start_s: float, end_s: float) -> list[State]:
        """The states that an answer to a search of that time may come from, newest first."""
        with self._lock:
            return [
                one
                for one in reversed(self._states)
                if one.since_s <= end_s and one.until_s >= start_s - LAG_S
            ]

    def publish(self) -> None:
        """Build a version of other vectors."""
        num = int(self._rng.integers(800, 1500))
        vectors = self._rng.standard_normal((num, DIM)).astype(np.float32)
        labels = np.sort(self._rng.integers(0, NUM_LABELS, num))
        version = self.latest.version if self._states else 0
        self._begin(self._newest() + 1 if version else 1, np.arange(num), vectors, labels)
        build(self.path, vectors, labels, config=IndexConfig(shards=3))
        self._done("publish")

    def add(self) -> None:
        """Add a few vectors."""
        now = self.latest
        vectors = self._rng.standard_normal((5, DIM)).astype(np.float32)
        labels = self._rng.integers(0, NUM_LABELS, 5)
        # Above what any version ever had.
        ids = 10_000 * (1 + self.num_changes["add"]) + np.arange(5)
        self._begin(
            now.version,
            np.concatenate([now.ids, ids]),
            np.concatenate([now.vectors, vectors]),
            np.concatenate([now.labels, labels]),
        )
        IndexWriter(self.path).add(vectors, labels, ids)
        self._done("add")

    def remove(self) -> None:
        """Remove a few vectors."""
        now = self.latest
        gone = self._rng.choice(len(now.ids), 5, replace=False)
        kept = np.setdiff1d(np.arange(len(now.ids)), gone)
        self._begin(now.version, now.ids[kept], now.vectors[kept], now.labels[kept])
        IndexWriter(self.path).remove(now.ids[gone])
        self._done("remove")

    def merge(self) -> None:
        """Make a version of the changes."""
        now = self.latest
        self._begin(self._newest() + 1, now.ids, now.vectors, now.labels)
        if not merge(self.path)[1]:  # there were none
            with self._lock:
                self._states.pop()
            return
        self._done("merge")

    def roll_back(self) -> None:
        """Go back to the version before, changes and all."""
        older = [one for one in list_versions(self.path) if one < self.latest.version]
        if not older:
            return
        back = self._of_version[older[-1]]
        self._begin(back.version, back.ids, back.vectors, back.labels)
        changes.roll_back(self.path, back.version)
        self._done("rollback")

    def check(self) -> None:
        """Compare the index on the disk with the arrays: whatever was acknowledged is there."""
        index = open_index(self.path, verify=True)
        assert index.num_vectors == len(self.latest.ids)
        found = index.search(self.latest.vectors, 1)
        np.testing.assert_array_equal(found.ids[:, 0], self.latest.ids)
        np.testing.assert_array_equal(index.labels_of(found.ids)[:, 0], self.latest.labels)
        assert read_manifest(find_version(self.path)).version == self.latest.version

    def _newest(self) -> int:
        return max(self._of_version)

    def _begin(self, version: int, ids: np.ndarray, vectors: np.ndarray, labels: np.ndarray) -> None:
        with self._lock:
            self._states.append(State(version, ids, vectors, labels, time.monotonic()))

    def _done(self, name: str) -> None:
        with self._lock:
            now = time.monotonic()
            if len(self._states) > 1:
                self._states[-2].until_s = now
            while self._states[0].until_s < now - LAG_S - ANSWERED_WITHIN_S:
                del self._states[0]
            self._of_version[self.latest.version] = self.latest
            self.num_changes[name] += 1


@dataclass
class Outcome:
    """What became of the searches."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    asked_again: Counter[str] = field(default_factory=Counter)
    """tries that failed, by status or error; the next one was answered"""
    longest_s: float = 0.0
    stale: int = 0
    """answers of a state that had been replaced for more than two seconds when the answer came"""


class Clients:
    """Threads that search."""

    def __init__(self, shadow: Shadow, port: int, num: int, seed: int) -> None:
        self.outcome = Outcome()
        self._shadow, self._port = shadow, port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._search, args=(seed + one,)) for one in range(num)]
        self._threads.append(threading.Thread(target=self._break_off, args=(seed + num,)))

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _search(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._stop.is_set():
            queries = rng.standard_normal((int(rng.integers(1, 5)), DIM)).astype(np.float32)
            kind = str(rng.choice(["", "same_class", "other_class", "excluded"]))
            body: dict[str, Any] = {"queries": queries.tolist(), "k": K}
            labels = rng.integers(0, NUM_LABELS, len(queries))
            if kind == "excluded":
                body["exclude_ids"] = [[0, 300]] * len(queries)
            elif kind:
                body |= {"filter": kind, "query_labels": labels.tolist()}
            start = time.monotonic()
            answer = self._ask(json.dumps(body).encode(), start)
            with self._lock:
                self.outcome.longest_s = max(self.outcome.longest_s, time.monotonic() - start)
                if answer is None:
                    self.outcome.unanswered.append(f"{kind} at {start:.1f}")
                    continue
            self._judge(answer, queries, kind, labels, start)

    def _ask(self, body: bytes, start_s: float) -> dict[str, Any] | None:
        while time.monotonic() - start_s < ANSWERED_WITHIN_S:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWERED_WITHIN_S)
            try:
                connection.request("POST", "/search", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                data = answer.read()
                if answer.status == 200:
                    return json.loads(data)
                problem = str(answer.status)
                assert answer.status >= 500, (problem, data)
            except (OSError, http.client.HTTPException) as error:
                problem = type(error).__name__
            finally:
                connection.close()
            with self._lock:
                self.outcome.asked_again[problem] += 1
            time.sleep(0.05)
        return None

    def _judge(
        self, answer: dict[str, Any], queries: np.ndarray, kind: str, labels: np.ndarray, start_s: float
    ) -> None:
        now = time.monotonic()
        states = [one for one in self._shadow.between(start_s, now) if one.version == answer["version"]]
        for state in states:
            if is_exact(state, answer, queries, kind, labels):
                with self._lock:
                    self.outcome.right += 1
                    newest = self._shadow.between(start_s, now)[0]
                    self.outcome.stale += newest is not state and start_s - newest.since_s > 2.0
                return
        with self._lock:
            self.outcome.wrong.append(f"{kind}: {answer} of {[one.version for one in states]}")

    def _break_off(self, seed: int) -> None:
        """Clients that send half a search, or do not take the answer."""
        rng = random.Random(seed)
        body = json.dumps({"queries": [[0.5] * DIM] * 200, "k": 50}).encode()
        request = (
            b"POST /search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(body)
        )
        while not self._stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as one:
                one.sendall((request + body)[: rng.randint(1, len(request) + len(body))])
                time.sleep(rng.uniform(0, 0.2))


def is_exact(
    state: State, answer: dict[str, Any], queries: np.ndarray, kind: str, labels: np.ndarray
) -> bool:
    """Whether an answer is that of an exact search of a state, whatever the order of equal distances."""
    places = {int(one): at for at, one in enumerate(state.ids)}
    distances = ((queries[:, None].astype(np.float64) - state.vectors[None].astype(np.float64)) ** 2).sum(2)
    for row, query_label in enumerate(labels):
        allowed = np.ones(len(state.ids), bool)
        if kind == "same_class":
            allowed = state.labels == query_label
        elif kind == "other_class":
            allowed = state.labels != query_label
        elif kind == "excluded":
            allowed = (state.ids < 0) | (state.ids >= 300)
        expected = np.sort(distances[row][allowed])[:K]
        found = [one for one in answer["ids"][row] if one != -1]
        if len(found) != len(expected) or len(set(found)) != len(found):
            return False
        if not all(one in places and allowed[places[one]] for one in found):
            return False
        at = [places[one] for one in found]
        if [int(state.labels[one]) for one in at] != answer["labels"][row][: len(found)]:
            return False
        if not np.allclose(distances[row][at], expected, rtol=1e-5, atol=1e-5):
            return False
        if not np.allclose(answer["distances"][row][: len(found)], expected, rtol=1e-4, atol=1e-4):
            return False
    return True


def replicas(pid: int) -> list[int]:
    """The processes of the service's replicas below the process `pid`."""
    return [one for one, title in descendants(pid) if title.startswith("ray::ServeReplica")]


def kill(process: int) -> None:
    """SIGKILL."""
    os.kill(process, signal.SIGKILL)


def pause(process: int, seconds: float) -> None:
    """SIGSTOP for some seconds."""
    os.kill(process, signal.SIGSTOP)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def cut_off(process: int) -> int:
    """Break all TCP connections of a process off, as a network that fails; returns how many."""
    library = ctypes.CDLL(None, use_errno=True)
    holder = os.pidfd_open(process)
    num = 0
    try:
        for path in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                if not str(path.readlink()).startswith("socket:"):
                    continue
                descriptor = library.syscall(_PIDFD_GETFD, holder, int(path.name), 0)
                if descriptor < 0:
                    raise OSError(ctypes.get_errno(), "pidfd_getfd")
                with socket.socket(fileno=descriptor) as copy:
                    if copy.family in (socket.AF_INET, socket.AF_INET6) and not copy.getsockopt(
                        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
                    ):
                        copy.shutdown(socket.SHUT_RDWR)
                        num += 1
    finally:
        os.close(holder)
    return num
