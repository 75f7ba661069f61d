"""`python -m benchmarks.suite workers`: two workers compared with one on the same steps, and the cost of averaging."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.suite.interleave import Measured, interleave
from benchmarks.suite.processes import hear, spawned
from benchmarks.suite.report import BenchOptions, Report, Table, Target
from benchmarks.suite.train_setup import BenchData, describe_data, make_data, make_trainer
from cluster.planning.machine_rates import load_steps
from fsl_dist.distributed import WorkerGroup
from index.runtime import flushing_denormals

_WAIT_S = 120.0

ONE, TWO, APART, UNREDUCED = "one worker", "two workers", "two separate runs", "two workers, not averaged"


@dataclass(frozen=True, slots=True)
class _Job:
    """What one process trains."""

    data: BenchData
    network: str
    method: str
    settings: Sequence[str]
    run: Path
    world_size: int


@contextmanager
def _processes(job: _Job, num: int) -> Iterator[Callable[[int], None]]:
    """`num` processes of one thread each that train `job`; yields what has them take some steps, and waits for them.

    Raises EOFError where one died, TimeoutError where one hangs.
    """
    with ExitStack() as stack:
        ends = [stack.enter_context(spawned(_serve, job, rank)) for rank in range(num)]

        def take(steps: int) -> None:
            for end in ends:
                end.send(steps)
            for end in ends:
                hear(end, _WAIT_S)

        for end in ends:
            hear(end, _WAIT_S)
        yield take


@flushing_denormals(torch.set_flush_denormal)
def _serve(job: _Job, rank: int, end: Connection) -> None:
    """Take as many steps as the other end says, until it closes; negative numbers: without averaging gradients."""
    torch.set_num_threads(1)
    if job.world_size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{job.run}.meet",
            rank=rank,
            world_size=job.world_size,
            timeout=timedelta(seconds=_WAIT_S),
        )
    run = job.run if job.world_size > 1 else job.run / str(rank)
    trainer = make_trainer(job.data.config(job.network, job.method, run, job.settings), WorkerGroup.current())
    planned, images = load_steps(trainer, 0, 1)[0][0]
    end.send("ready")
    while True:
        try:
            steps = end.recv()
        except EOFError:
            break
        with trainer.forward.no_sync() if steps < 0 else nullcontext():  # type: ignore[operator]
            for _ in range(abs(steps)):
                trainer.take_step(planned, iter(images))
        end.send("done")
    if job.world_size > 1:
        dist.destroy_process_group()


def time_workers(
    data: BenchData,
    network: str,
    method: str,
    settings: Sequence[str],
    *,
    folder: Path,
    steps: int,
    rounds: int,
) -> Measured:
    """One worker, two, two without averaging gradients, and two independent runs; a unit is a step of one worker."""
    name = f"{network}-{method}-{abs(hash(tuple(settings)))}"
    alone, together = (
        _Job(data, network, method, settings, folder / f"{name}-{size}", size) for size in (1, 2)
    )
    with (
        _processes(alone, 1) as one,
        _processes(together, 2) as two,
        _processes(_Job(data, network, method, settings, folder / f"{name}-apart", 1), 2) as apart,
    ):

        def counted(take: Callable[[int], None], steps: int, units: float) -> Callable[[], float]:
            def go() -> float:
                take(steps)
                return units

            return go

        return interleave(
            {
                ONE: counted(one, steps, steps),
                TWO: counted(two, steps, steps),
                UNREDUCED: counted(two, -steps, steps),
                APART: counted(apart, steps, 2 * steps),
            },
            unit="step",
            rounds=rounds,
        )


@dataclass(frozen=True, slots=True)
class _Case:
    """One network at so many images per worker and step."""

    name: str
    network: str
    settings: tuple[str, ...]
    steps: int
    at_least: float | None = None


_CASES = (
    _Case("Conv4, an episode of 200 images per worker", "conv4", ("episode.n_query=10", "episode.per_step=2"), 2, 1.7),
    _Case("ResNet18, an episode of 150 images per worker", "resnet18", ("episode.per_step=2",), 1),
    _Case("MLP, an episode of 150 vectors per worker", "mlp", ("episode.per_step=2",), 40),
    _Case("MLP, 8 episodes per worker", "mlp", ("episode.per_step=16",), 5),
)  # fmt: skip


def measure(options: BenchOptions) -> Report:
    """Speed of two workers of one thread each over one, with the same batches per step, and of two independent runs."""
    data = make_data(options)
    targets: list[Target] = []
    rows: list[tuple[str | float, ...]] = []
    for case in _CASES[:1] if options.is_smoke else _CASES:
        measured = time_workers(
            data, case.network, "pcn", case.settings,
            folder=options.folder, steps=case.steps, rounds=options.rounds,
        )  # fmt: skip
        two, apart = measured.ratios(ONE, TWO), measured.ratios(ONE, APART)
        share = [1 - less for less in measured.ratios(UNREDUCED, TWO)]
        medians = [statistics.median(values) for values in (two, apart, share)]
        rows.append(
            (
                case.name,
                *(float(f"{measured.median_ms(name):.3g}") for name in (ONE, TWO)),
                *(round(value, 2) for value in medians),
            )
        )
        targets.append(
            Target(
                f"speed of two workers / one: {case.name}", two, at_least=case.at_least,
                remark=f"two independent runs: {medians[1]:.2f}; averaging gradients takes {100 * medians[2]:.0f} % of a step",
            )
        )  # fmt: skip
    table = Table(
        "Two workers of one thread compared with one, the same episodes per step (PCN)",
        ("", "one worker, ms/step", "two workers, ms/step", "speed of two", "speed of two independent runs",
         "share of averaging gradients"),
        tuple(rows),
    )  # fmt: skip
    return Report(
        benchmark="workers",
        title="Compares two workers of one thread each with one worker of one thread, and with two independent "
        "runs, which show the maximum that two cores can give here.",
        config=describe_data(options),
        tables=[table],
        targets=targets,
        is_smoke=options.is_smoke,
    )
