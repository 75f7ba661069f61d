"""The guard against regressions: every benchmark small, its ratios compared with the recorded ones.

    python -m benchmarks.smoke              all benchmarks; exit 1 where a ratio is worse than its bound
    python -m benchmarks.smoke stream       some of them
    python -m benchmarks.smoke --record     write the medians of what was run as the bounds
    python -m benchmarks.smoke --widen      write them where they are worse than the bounds: on a processor of another
                                            kind

A ratio fails that is worse than its bound in benchmarks/smoke_bounds.json by more than 30 % in two runs in
succession; so a benchmark is run again, once, where one of its ratios is. Only ratios of times taken in turn are
watched, never a time.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.suite.run import BENCHMARKS, TIMES_ONLY

BOUNDS = Path(__file__).with_name("smoke_bounds.json")
GUARDED = [name for name in BENCHMARKS if name not in TIMES_ONLY]
SLACK = 1.3
ROUNDS = 5


def run_small(name: str) -> dict[str, dict]:
    """One small run of a benchmark, in a process of its own: guarded targets by name, with `value` and the bound's
    side."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.suite",
        name,
        "--smoke",
        "--rounds",
        str(ROUNDS),
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"python -m benchmarks.suite {name} --smoke failed with exit code {done.returncode}")
    return {target["name"]: target for target in json.loads(done.stdout)["targets"] if target["is_guarded"]}


def find_worse(targets: Mapping[str, Mapping], bounds: Mapping[str, float]) -> dict[str, str]:
    """Ratios that are worse than their bound by more than the slack, or are not measured any more: name → what is
    wrong."""
    worse = {}
    for name, bound in bounds.items():
        target = targets.get(name)
        if target is None:
            worse[name] = "has a bound and is not measured any more (record the bounds again)"
        elif target["at_most"] is not None and target["value"] > bound * SLACK:
            worse[name] = f"is {target['value']:.3g}, more than {SLACK} × its bound {bound:.3g}"
        elif target["at_most"] is None and target["value"] < bound / SLACK:
            worse[name] = f"is {target['value']:.3g}, less than its bound {bound:.3g} / {SLACK}"
    return worse


def record_bounds(
    targets: Mapping[str, Mapping], bounds: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Every guarded ratio's median in one run; with `bounds` the worse of the two."""
    worse = {}
    for name, target in targets.items():
        values = [target["value"], *([bounds[name]] if bounds and name in bounds else [])]
        worse[name] = min(values) if target["at_most"] is None else max(values)
    return worse


def guard(
    names: list[str], bounds: Mapping[str, Mapping[str, float]], run: Callable[[str], Mapping[str, Mapping]]
) -> list[str]:
    """Run the benchmarks by `run`; says what is worse than its bound in two runs in succession."""
    failed = []
    for name in names:
        worse = find_worse(run(name), bounds.get(name, {}))
        if worse:
            print(f"{name}: again, because “{'”, “'.join(worse)}” came out worse", flush=True)
            again = find_worse(run(name), bounds.get(name, {}))
            failed += [f"{name}: {key} {again[key]}" for key in worse if key in again]
        print(f"{name}: {len(bounds.get(name, {}))} ratios looked at", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GUARDED)}; all")
    writing = parser.add_mutually_exclusive_group()
    writing.add_argument("--record", action="store_true")
    writing.add_argument("--widen", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - set(GUARDED):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(GUARDED)}")
    names = options.names or GUARDED
    bounds = json.loads(BOUNDS.read_text(encoding="utf-8")) if BOUNDS.exists() else {}
    if options.record or options.widen:
        for name in names:
            bounds[name] = record_bounds(run_small(name), bounds.get(name) if options.widen else None)
        BOUNDS.write_text(json.dumps(bounds, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif failed := guard(names, bounds, run_small):
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
