"""Everything this project does on a GPU, checked and timed in one go: decoding, training, mining, searching.

    python -m benchmarks.gpu.check                   # on a machine with a GPU; writes benchmarks/gpu/results/
    python -m benchmarks.gpu.check --small           # seconds; without a GPU the CPU stands in and times mean nothing
    python -m benchmarks.gpu.check --only training mining --out FOLDER

Prints Markdown. A section that lacks a library or a GPU says so and the others continue; the exit code is 1 where a
check falls short.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from pathlib import Path

import torch

from benchmarks.gpu.outcome import NotHereError, Outcome, Setting
from benchmarks.suite.report import Report, describe_machine, to_json, to_markdown

SECTIONS = ("decode", "training", "mining", "search")
"""`check_NAME.measure(setting) -> Outcome`"""
RESULTS = Path(__file__).parent / "results"


def run_section(name: str, setting: Setting) -> Outcome:
    """One section; what it lacks, or an error in it, becomes a note."""
    started = time.perf_counter()
    try:
        found: Outcome = importlib.import_module(f"benchmarks.gpu.check_{name}").measure(setting)
    except (ImportError, NotHereError) as missing:
        return Outcome(notes=[f"{name}: not run: {str(missing).splitlines()[0]}"])
    except Exception:  # hours of a lent machine must not hang on one section
        traceback.print_exc()
        found = Outcome()
        found.check(f"{name}: runs to its end", 1.0, 0.0, traceback.format_exc().splitlines()[-1])
    found.notes.append(f"{name}: {time.perf_counter() - started:.1f} s in all")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="sizes that take seconds on a CPU")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder that gets gpu.json and gpu.md")
    arguments = parser.parse_args()
    setting = Setting(
        torch.device("cuda:0" if torch.cuda.is_available() else "cpu"),
        arguments.small,
        1 if arguments.small else arguments.rounds,
    )
    if not (setting.is_gpu or arguments.small):
        parser.error("torch sees no GPU; --small runs on the CPU")
    found = [run_section(name, setting) for name in arguments.only]
    report = Report(
        "gpu",
        "Check everything that runs on a GPU against the CPU, and compare its times with the limits"
        if setting.is_gpu
        else "The GPU's checks on a CPU at small sizes: what is right, not how fast",
        {"sections": " ".join(arguments.only), "rounds": setting.rounds, "device": str(setting.device)},
        [table for part in found for table in part.tables],
        [target for part in found for target in part.targets],
        [note for part in found for note in part.notes],
        is_smoke=arguments.small,
        machine={**describe_machine(), **_gpu()},
    )
    out, name = arguments.out, "gpu"
    if out is None and setting.is_gpu and not arguments.small:
        out, name = RESULTS, f"{report.date}-{torch.cuda.get_device_name(0).replace(' ', '-')}"
    text = to_markdown(report).replace("`python -m benchmarks.suite gpu`", "`python -m benchmarks.gpu.check`")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n")
        (out / f"{name}.md").write_text(text)
    print(text)
    return 0 if all(target.holds for target in report.targets) else 1


def _gpu() -> dict[str, object]:
    if not torch.cuda.is_available():
        return {}
    device = torch.cuda.get_device_properties(0)
    return {
        "gpu_memory_gb": round(device.total_memory / 1e9, 1),
        "multiprocessors": device.multi_processor_count,
        "cuda": str(torch.version.cuda),
    }


if __name__ == "__main__":
    sys.exit(main())
