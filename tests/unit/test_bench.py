"""The frame of the benchmarks: clocks, reports, and the guard against regressions."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.suite.interleave import Measured, Round, interleave, tree_cpu_s
from benchmarks.suite.report import Report, Table, Target, from_json, timing_table, to_json, to_markdown

ROOT = Path(__file__).parents[2]

BURN = "import time; stop = time.process_time() + 0.3\nwhile time.process_time() < stop: pass"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contenders_take_turns_and_every_other_round_goes_backwards():
    calls = []
    measured = interleave(
        {name: lambda name=name: calls.append(name) or 2.0 for name in "ab"}, unit="step", rounds=3
    )
    assert "".join(calls) == "baabbaab"
    assert [len(turns) for turns in measured.rounds.values()] == [3, 3]
    assert {turn.units for turns in measured.rounds.values() for turn in turns} == {2.0}


def test_ratios_are_taken_pair_by_pair_and_a_unit():
    measured = Measured(
        "image", {"a": [Round(10, 1, 4), Round(10, 3, 4)], "b": [Round(5, 1, 1), Round(20, 3, 8)]}
    )
    assert measured.ratios("a", "b") == pytest.approx([0.5, 2.0])
    assert measured.ratios("a", "b", "cpu") == pytest.approx([2.0, 1.0])
    assert measured.median_ms("a") == pytest.approx(200)


@pytest.mark.skipif(sys.platform != "linux", reason="living child processes are found in /proc")
def test_the_cpu_time_of_children_counts_while_they_live_and_once_they_ended():
    before = tree_cpu_s()
    with subprocess.Popen(
        [sys.executable, "-c", f"{BURN}\nprint(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        child.stdout.readline()
        living = tree_cpu_s() - before
        child.communicate(b"\n")
    assert living >= 0.29
    assert tree_cpu_s() - before >= living - 0.02


def test_sleeping_is_no_cpu_time():
    before = tree_cpu_s()
    time.sleep(0.3)
    assert tree_cpu_s() - before < 0.1


def make_report():
    measured = Measured("image", {"ours": [Round(10, 1, 2)] * 3, "theirs": [Round(10, 2, 4)] * 3})
    return Report(
        "stream",
        "One against the other.",
        {"images": 10},
        [timing_table("Scan", measured, base="theirs"), Table("More", ("", "MB"), (("ours", 1.5),))],
        [
            Target("ours / theirs", measured.ratios("ours", "theirs"), at_most=0.4, remark="not yet"),
            Target("theirs / ours", measured.ratios("theirs", "ours"), at_least=1.5),
        ],
        ["A note."],
    )


def test_a_report_survives_json():
    report = make_report()
    assert from_json(json.loads(json.dumps(to_json(report)))) == report


def test_a_reader_sees_what_falls_short():
    text = to_markdown(make_report())
    assert "| ours / theirs | 0.5 | ≤ 0.4 | **missed** | not yet |" in text
    assert "| theirs / ours | 2 | ≥ 1.5 | met |  |" in text
    assert "| ours | 100 | 200 | 10 | 0.5 | 0.5 |" in text


def ratio(value, at_most=1.0):
    return {"value": value, "at_most": at_most}


def test_the_guard_allows_thirty_percent_either_way():
    find_worse = load(ROOT / "benchmarks" / "smoke.py").find_worse
    bounds = {"cost": 1.0, "speedup": 2.0}
    assert find_worse({"cost": ratio(1.29), "speedup": ratio(1.6, None)}, bounds) == {}
    assert set(find_worse({"cost": ratio(1.31), "speedup": ratio(1.5, None)}, bounds)) == {"cost", "speedup"}
    assert "not measured" in find_worse({"cost": ratio(1.0)}, bounds)["speedup"]


@pytest.mark.parametrize(("values", "fails"), [([1.0], False), ([1.5, 1.0], False), ([1.5, 1.6], True)])
def test_the_guard_fails_where_a_ratio_is_worse_twice_in_succession(values, fails):
    guard = load(ROOT / "benchmarks" / "smoke.py").guard
    runs = iter(values)
    failed = guard(["stream"], {"stream": {"cost": 1.0}}, lambda name: {"cost": ratio(next(runs))})
    assert bool(failed) == fails
    assert next(runs, None) is None  # a second run only after a worse one


def test_bounds_of_two_machines_are_the_worse_ones():
    record_bounds = load(ROOT / "benchmarks" / "smoke.py").record_bounds
    targets = {
        "cost": {"value": 0.5, "at_most": 1.0},
        "speed": {"value": 1.8, "at_most": None},
        "new": {"value": 0.1, "at_most": 1.0},
    }
    assert record_bounds(targets) == {"cost": 0.5, "speed": 1.8, "new": 0.1}
    assert record_bounds(targets, {"cost": 0.4, "speed": 1.9}) == {"cost": 0.5, "speed": 1.8, "new": 0.1}
    assert record_bounds(targets, {"cost": 0.6, "speed": 1.7}) == {"cost": 0.6, "speed": 1.7, "new": 0.1}


def test_every_benchmark_has_recorded_bounds():
    from benchmarks.suite.run import BENCHMARKS, TIMES_ONLY

    bounds = json.loads((ROOT / "benchmarks" / "smoke_bounds.json").read_text())
    assert set(bounds) == set(BENCHMARKS) - set(TIMES_ONLY)
    assert all(value > 0 for of_one in bounds.values() for value in of_one.values())
