"""What it brings that freed memory stays with the process, and what it costs in memory: the same work in two processes."""

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from cluster.bench.interleave import interleave
from cluster.bench.machine_rates import load_steps
from cluster.bench.peers_episodes import status_mb
from cluster.bench.report import Table
from cluster.bench.train_setup import BenchData, make_trainer
from cluster.bench.train_steps import Found
from fsl_dist.training.denormals import flushing_denormals

_WAIT_S = 300.0
# A tunable at its default: glibc is as it always is, and keep_freed_memory leaves it so.
_LEFT_ALONE = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}
_224 = ("data.resize_size=256", "data.image_size=224")
# Name, network of the benchmark, settings, and how often a turn does it; an embedding turn embeds so many images.
CASES = (
    ("step of Conv4, 150 images of 28 px", "conv4", (), "step", 4),
    ("step of ResNet18, 50 images of 224 px", "resnet18", ("episode.n_way=5", "episode.k_shot=5", *_224), "step", 1),
    ("256 images of 224 px embedded by MobileNetV2", "conv4",
     ("backbone.name=mobilenet_v2", "data.channels=3", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]",
      "evaluation.batch_size=64", *_224), "embed", 1),
)  # fmt: skip
KEPT, GIVEN = "kept", "given back"


def measure_kept_memory(data: BenchData, *, folder: Path, rounds: int) -> Found:
    """Some work with freed memory kept and given back, each in a process of its own: milliseconds, and its peak memory."""
    rows: list[tuple[str | float, ...]] = []
    for number, case in enumerate(CASES):
        with (
            _process(data, number, folder / f"kept-{number}", {}) as (keep, kept_mb),
            _process(data, number, folder / f"given-{number}", _LEFT_ALONE) as (give, given_mb),
        ):
            measured = interleave({KEPT: keep, GIVEN: give}, unit="turn", rounds=rounds)
            memory = [kept_mb(), given_mb()]
        times = [measured.median_ms(KEPT), measured.median_ms(GIVEN)]
        ratio = statistics.median(measured.ratios(KEPT, GIVEN))
        rows.append((case[0], *(float(f"{ms:.3g}") for ms in times), round(ratio, 2), *map(round, memory)))
    columns = ("", "kept, ms", "given back, ms", "ratio", "peak MB, kept", "peak MB, given back")
    return Found(
        [Table("Freed memory kept for the next batch, or given back as glibc does", columns, tuple(rows))]
    )


@contextmanager
def _process(
    data: BenchData, case: int, run: Path, environment: dict[str, str]
) -> Iterator[tuple[Callable[[], float], Callable[[], float]]]:
    """A process that does a case's work: what has it take a turn, and what asks for its peak memory in MB."""
    spawn = multiprocessing.get_context("spawn")
    end, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(data, case, run, theirs))
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process.start()
    finally:
        for name in environment:
            os.environ.pop(name)
        os.environ.update(before)
    theirs.close()  # so that a process that dies is the end of the pipe here

    def ask(what: str) -> float:
        end.send(what)
        if not end.poll(_WAIT_S):
            raise TimeoutError(f"a benchmark's process said nothing for {_WAIT_S:g} s")
        answer: float = end.recv()
        return answer

    try:
        yield lambda: ask("turn"), lambda: ask("memory")
    finally:
        end.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


@flushing_denormals()
def _serve(data: BenchData, case: int, run: Path, end: Connection) -> None:
    """Take a turn or tell the peak memory, as the other end asks, until it closes."""
    _, network, settings, kind, repeats = CASES[case]
    trainer = make_trainer(data.config(network, "pcn", run, settings))
    planned, (images,) = load_steps(trainer, 0, 1)[0][0]
    ids = trainer.splits.train.ids[:256]
    while True:
        try:
            asked = end.recv()
        except EOFError:
            return
        if asked == "memory":
            end.send(status_mb("self", "VmHWM"))
            continue
        for _ in range(repeats):
            if kind == "embed":
                trainer.embedder.embed(ids)
            else:
                trainer.take_step(planned, iter([images]))
        end.send(float(repeats))
