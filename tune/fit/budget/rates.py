"""What this machine does: images per second of training and of embedding,
measured with the fit's own network and images."""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from fsl_dist.config import RunConfig
from fsl_dist.data.loader import Loader
from fsl_dist.distributed import WorkerGroup
from fsl_dist.training.loop import Trainer
from fsl_dist.training.step import planned_steps, step_requests
from index.base.errors import RequestError
from tune.fit.budget.planning import Rates

log = logging.getLogger(__name__)

FORWARD = 2.5
"""images embedded in the time that one is trained on"""
_TIMED_BATCH = 24
"""images per timed step on a CPU, where larger steps are not faster per image"""
_STEPS = 1
"""steps that are timed at least, after one that is not"""
_LEAST_S = 0.5
"""minimum seconds per measurement of training"""
_MOST_COPIES = 8
"""maximum number of concurrent trainings in a measurement"""
SMALLEST_BATCH = 8


@dataclass(frozen=True, slots=True)
class Machine:
    """Where trials and the final run are trained."""

    slots: int
    """concurrent trials"""
    cpus: int
    """CPU cores of a trial"""
    gpus: float
    """GPUs of a trial"""
    has_gpu: bool
    joins: bool
    """whether a Ray cluster is joined that was started before, so that runs go through Ray"""


def describe_machine(num_candidates: int, cores: float = 0.0, gpus: float = 0.0) -> Machine:
    """Divide this machine, or a cluster of `cores` and `gpus`, among trials.

    One trial per core runs concurrently, up to the number of candidates; additional cores are divided among them. Two
    trials share a GPU, since a single one leaves it idle while it waits for images.
    """
    joins = cores > 0
    num_cores = int(cores) if joins else len(os.sched_getaffinity(0))
    num_gpus = int(gpus) if joins else torch.cuda.device_count()
    if num_gpus:
        slots = max(1, min(2 * num_gpus, num_cores))
        return Machine(slots, max(1, num_cores // slots), 0.5 if slots > num_gpus else 1.0, True, joins)
    slots = max(1, min(num_cores, num_candidates))
    return Machine(slots, max(1, num_cores // slots), 0.0, False, joins)


def measure_rates(config: RunConfig, machine: Machine) -> Rates:
    """Measure images per second of trials, of a single run, and of embedding, at the image size of `config`.

    First as many trainings as there will be trials are timed concurrently, then one with all cores. If other programs
    use the cores too, several threads can be slower than one, so a single run uses the fastest number of threads.

    Raises RuntimeError if the memory does not suffice for a batch.
    """
    threads = torch.get_num_threads()
    if machine.has_gpu:
        alone = _measure_copies(config, 1, threads)
        together = alone / machine.slots
    else:
        small = min(config.training.batch_size, _TIMED_BATCH)
        config = replace(config, training=replace(config.training, batch_size=small))
        copies = min(machine.slots, _MOST_COPIES)
        together = alone = _measure_copies(config, copies, machine.cpus)
        if threads > machine.cpus:
            with_all = _measure_copies(config, 1, threads)
            threads = threads if with_all > alone else machine.cpus
            alone = max(alone, with_all)
    torch.set_num_threads(threads)
    return Rates(
        trial=together,
        final=alone,
        embed=FORWARD * alone,
        size=config.data.image_size,
        threads=threads,
    )


def find_batch(
    measure: Callable[[int], Rates], batch_size: int, say: Callable[[str], None]
) -> tuple[Rates, int]:
    """Rates at the largest of `batch_size`, its half, a quarter … that fits in memory.

    Raises RequestError if `SMALLEST_BATCH` images do not fit.
    """
    while True:
        try:
            return measure(batch_size), batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size // 2 < SMALLEST_BATCH:
                raise RequestError(
                    f"the memory does not suffice for a batch of {batch_size} images (data.image_size makes them "
                    "smaller, backbone.name names a smaller network)"
                ) from error
        batch_size //= 2
        say(f"The memory does not suffice for larger batches: training.batch_size={batch_size}.")


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or its text, reports a lack of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text
        for words in ("out of memory", "can't allocate memory", "cannot allocate memory", "memoryerror")
    )


def _measure_copies(config: RunConfig, copies: int, threads: int) -> float:
    """Images per second of each of `copies` concurrent trainings with this many threads each."""
    if copies == 1:
        torch.set_num_threads(threads)
        return _time_training(config, threading.Barrier(1))
    barrier = threading.Barrier(copies)

    def train(_: int) -> float:
        torch.set_num_threads(threads)  # of this thread
        try:
            return _time_training(config, barrier)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(copies) as pool:
        rates = []
        errors = []
        for one in [pool.submit(train, number) for number in range(copies)]:
            try:
                rates.append(one.result())
            except threading.BrokenBarrierError:
                continue
            except Exception as error:
                errors.append(error)
    if errors:
        raise errors[0]
    return min(rates)


def _time_training(config: RunConfig, barrier: threading.Barrier) -> float:
    device = torch.device("cuda:0" if torch.cuda.is_available() and config.workers.gpu == "auto" else "cpu")
    trainer = Trainer(config, group=WorkerGroup(), device=device, owner=None)
    num_steps, images, started, timed = trainer.method.num_steps(), 0, 0.0, 0
    requests = (
        request
        for epoch in range(1000)
        for request in step_requests(
            trainer.method,
            epoch,
            range(num_steps),
            group=trainer.group,
            is_ghost=trainer.is_ghost,
            ghost_group=config.backbone.batch_norm_group,
        )
    )
    trainer.network.train()
    try:
        with Loader(trainer.source, requests, config.data.prefetch) as loader:
            for planned, batch in planned_steps(loader):
                trainer.take_step(planned, batch)
                if not started:
                    barrier.wait(60)
                    started = time.perf_counter()
                    continue
                images, timed = images + planned.num_images, timed + 1
                elapsed = time.perf_counter() - started
                if timed >= _STEPS and elapsed >= _LEAST_S:
                    return images / elapsed
    finally:
        trainer.source.close()
    raise AssertionError("a method yields steps without end")
