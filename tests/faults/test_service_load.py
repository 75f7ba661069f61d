"""The index service under a mixed load: searches while the index changes, and replicas are killed, paused and cut off."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import PROGRAM
from free_ports import free_port
from mixed_load import DIM, Clients, K, Shadow, State, cut_off, is_exact, kill, pause, replicas
from sweep_processes import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.faults]

SEED = int(os.environ.get("FSL_DIST_FAULT_SEED", "0"))
LONG_S = float(os.environ.get("FSL_DIST_LOAD_S", "1200"))


def run_load(tmp_path: Path, seconds: float, pauses_s: tuple[float, ...]) -> None:
    """The load for so many seconds or longer, until every fault of a replica has happened once."""
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    shadow = Shadow(tmp_path / "index", SEED)
    port = free_port()
    service = subprocess.Popen(
        [PROGRAM, "index", "serve", shadow.path, "--port", str(port), "--replicas", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    faults = {"kill": 0, "pause": 0, "cut off": 0}
    try:
        assert service.stdout is not None
        assert json.loads(service.stdout.readline())["version"] == 1
        end = time.monotonic() + seconds
        actions = [shadow.add, shadow.remove, shadow.merge, shadow.publish, shadow.roll_back]
        with Clients(shadow, port, 3, SEED) as clients:
            next_fault = time.monotonic() + 2
            # A replica takes several seconds to return, and longer on a busy machine.
            while time.monotonic() < end or (0 in faults.values() and time.monotonic() < end + 120):
                draw.choices(actions, [6, 4, 1, 1, 1])[0]()
                time.sleep(draw.uniform(0.1, 0.6))
                if time.monotonic() < next_fault or len(running := replicas(service.pid)) < 2:
                    continue
                fault, victim = min(faults, key=faults.__getitem__), draw.choice(running)
                with suppress(ProcessLookupError):
                    if fault == "kill":
                        kill(victim)
                        wait_until(lambda gone=victim: gone not in replicas(service.pid), 30)
                    elif fault == "pause":
                        pause(victim, draw.choice(pauses_s))
                    else:
                        assert cut_off(victim) > 0
                    faults[fault] += 1
                next_fault = time.monotonic() + draw.uniform(2, 4)
            # Nothing more fails: both replicas come back, and answer from the newest state.
            wait_until(lambda: len(replicas(service.pid)) == 2, 120)
        outcome = clients.outcome
        print(json.dumps({"faults": faults, "changes": shadow.num_changes, "right": outcome.right}))
        print(json.dumps({"again": outcome.asked_again, "s": outcome.longest_s, "stale": outcome.stale}))
        assert outcome.wrong == []
        assert outcome.unanswered == []
        assert outcome.right > 10 * seconds / 3
        assert min(faults.values()) >= 1
        shadow.check()
        service.send_signal(signal.SIGTERM)
        _, errors = service.communicate(timeout=60)
        assert service.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        service.kill()
        service.communicate()


def test_no_answer_is_wrong_while_replicas_fail(tmp_path: Path) -> None:
    run_load(tmp_path, 10, (0.5,))


def test_an_answer_that_is_not_exact_is_found() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, DIM)).astype(np.float32)
    state = State(1, np.arange(50) * 3, vectors, np.arange(50) % 4, 0.0)
    queries, labels = vectors[:2] + 0.1, np.array([0, 1])
    squares = ((queries[:, None] - vectors[None]) ** 2).sum(2).astype(float)
    squares[state.labels[None] != labels[:, None]] = np.inf
    nearest = np.argsort(squares, axis=1)[:, :K]

    def answer(**changed: object) -> dict[str, Any]:
        found = {
            "ids": state.ids[nearest].tolist(),
            "labels": state.labels[nearest].tolist(),
            "distances": np.take_along_axis(squares, nearest, 1).tolist(),
        }
        return {**found, **changed}

    assert is_exact(state, answer(), queries, "same_class", labels)
    assert not is_exact(state, answer(), queries, "", labels)
    assert not is_exact(state, answer(), queries, "other_class", labels)
    other = np.argsort(squares, axis=1)[:, 1 : K + 1]  # the nearest is missing
    assert not is_exact(state, answer(ids=state.ids[other].tolist()), queries, "same_class", labels)
    assert not is_exact(state, answer(labels=[[0] * K] * 2), queries, "same_class", labels)
    assert not is_exact(state, answer(distances=[[0.0] * K] * 2), queries, "same_class", labels)
    assert not is_exact(state, answer(ids=[[1] * K] * 2), queries, "same_class", labels)
    gone = State(1, state.ids[5:], vectors[5:], state.labels[5:], 0.0)
    assert not is_exact(gone, answer(), queries, "same_class", labels)


@pytest.mark.slow
@pytest.mark.timeout(LONG_S + 600)
def test_no_answer_is_wrong_for_long(tmp_path: Path) -> None:
    run_load(tmp_path, LONG_S, (0.5, 5.0, 70.0))
