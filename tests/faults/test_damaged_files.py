"""Damaged files against everything that reads them: the same answer or one line, and never a traceback, a crash or a hang.

The cases are drawn from FSL_DIST_FAULT_SEED (0 unless set), FSL_DIST_FAULTS of them. They run in processes of their own, so that a
segmentation fault is seen; a case that is not over after a minute is a hang. One case again:
`echo "KIND SEED" | python tests/helpers/damage_worker.py work BASE SCRATCH`, after `… make BASE`.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from damage_worker import KINDS, WORKER, environment

pytestmark = pytest.mark.faults

FIRST_SEED = int(os.environ.get("FSL_DIST_FAULT_SEED", "0"))
NUM_CASES = int(os.environ.get("FSL_DIST_FAULTS", "64"))
NUM_WORKERS = int(os.environ.get("FSL_DIST_FAULT_WORKERS", "2"))
LOG = os.environ.get("FSL_DIST_FAULT_LOG", "")  # a file that gets a line for each case
HANG_S = 60
FIRST_CASE_S = 120  # imports torch, and computes the answers of the sound folder


class Worker:
    """A process that does one case after another."""

    def __init__(self, base: Path, scratch: Path) -> None:
        command = [sys.executable, str(WORKER), "work", str(base), str(scratch)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.is_new: set[str] = set(KINDS)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def do(self, kind: str, seed: int) -> dict:
        """How a case ended."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {seed}\n")
        self.process.stdin.flush()
        limit_s = FIRST_CASE_S if kind in self.is_new else HANG_S
        self.is_new.discard(kind)
        try:
            line = self.lines.get(timeout=limit_s)
        except queue.Empty:
            self.process.kill()
            return {"kind": kind, "seed": seed, "problem": f"not over after {limit_s} s"}
        if not line:
            code = self.process.wait()
            return {"kind": kind, "seed": seed, "problem": f"the process died with exit code {code}"}
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def run_cases(base: Path, scratch: Path, cases: "queue.Queue[tuple[str, int]]", ended: list[dict]) -> None:
    worker = None
    while True:
        try:
            kind, seed = cases.get_nowait()
        except queue.Empty:
            break
        if worker is None:
            worker = Worker(base, scratch)
        case = worker.do(kind, seed)
        ended.append(case)
        if LOG:
            with open(LOG, "a") as log:
                log.write(json.dumps(case) + "\n")
        if "damage" not in case:  # it died
            worker.close()
            worker = None
    if worker is not None:
        worker.close()


@pytest.mark.timeout(4 * 3600)
def test_damage_gives_the_same_answer_or_one_line(base: Path, tmp_path: Path) -> None:
    cases: queue.Queue[tuple[str, int]] = queue.Queue()
    for number in range(NUM_CASES):
        cases.put((KINDS[number % len(KINDS)], FIRST_SEED + number // len(KINDS)))
    ended: list[dict] = []
    started = time.perf_counter()
    threads = [
        threading.Thread(target=run_cases, args=(base, tmp_path / f"scratch-{number}", cases, ended))
        for number in range(NUM_WORKERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    failed = [case for case in ended if case["problem"]]
    print(json.dumps(summarise(ended, seconds), indent=1))
    shown = "\n".join(
        f"{case['kind']} {case['seed']}: {case.get('damage', '')}\n  {case['problem']}"
        for case in failed[:20]
    )
    assert len(ended) == NUM_CASES
    assert not failed, f"{len(failed)} of {len(ended)} cases from seed {FIRST_SEED}:\n{shown}"


def summarise(ended: list[dict], seconds: float) -> dict[str, object]:
    """How many cases of which kind ended how."""
    states = Counter()
    for case in ended:
        if case["problem"]:
            states["failed"] += 1
        elif "refused" in case["states"].values():
            states["refused in one line"] += 1
        elif case["damage"]["is_certain"]:
            states["same answer"] += 1
        else:
            states["an answer (no checksum)"] += 1
    found = sum(case.get("doctor") is False for case in ended if case["kind"] != "given")
    kinds = Counter(case["damage"]["kind"] for case in ended if "damage" in case)
    return {
        "first_seed": FIRST_SEED,
        "cases": len(ended),
        "seconds": round(seconds, 1),
        **states,
        "of damaged folders doctor named": found,
        "damage": dict(kinds),
    }
