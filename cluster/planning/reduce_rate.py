"""Measure how fast two processes of this machine average gradients: gloo on the CPU, NCCL with two GPUs."""

import json
import logging
import multiprocessing
import time
from datetime import timedelta
from pathlib import Path

import torch

from cluster.planning.rates import Rate
from index.base.scratch import scratch_folder

log = logging.getLogger(__name__)

_MOST_BYTES = 64_000_000
_WAIT_S = 120.0


def measure_reduce(gradient_bytes: int, device: str) -> Rate | None:
    """10⁶ bytes of gradient per second that two processes average, in one call of that size (64 MB at most).

    None, with a log line, if there are not two GPUs or if the processes cannot connect.
    """
    if device == "cuda" and torch.cuda.device_count() < 2:
        log.warning(
            "averaging gradients is not measured: it needs two GPUs (`plan --network-gbit` replaces it)"
        )
        return None
    with scratch_folder("fsl-reduce-") as folder:
        result = Path(folder) / "result.json"
        spawn = multiprocessing.get_context("spawn")
        size = max(4, min(gradient_bytes, _MOST_BYTES))
        both = [
            spawn.Process(target=_reduce, args=(rank, str(Path(folder) / "meet"), size, device, str(result)))
            for rank in range(2)
        ]
        for process in both:
            process.start()
        for process in both:
            process.join(_WAIT_S)
            if process.is_alive():
                process.kill()
                process.join()
        if not result.is_file():
            log.warning("averaging gradients is not measured: two processes could not connect")
            return None
        found = json.loads(result.read_text())
    return Rate(per_s=float(f"{found['per_s']:.4g}"), core_ms=float(f"{found['core_ms']:.4g}"))


def _reduce(rank: int, meet: str, size_bytes: int, device: str, result: str) -> None:
    """One of the two processes; the first one writes the measurement."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=_WAIT_S / 2),
    )
    gradient = torch.zeros(size_bytes // 4, device=device)

    def average(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(gradient)
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / times

    average(2)
    dist.barrier()
    # The same number on both: each averages as often as the other.
    times = max(3, min(50, 200_000_000 // size_bytes))
    cpu = time.process_time()
    seconds = min(average(times) for _ in range(3))
    core_s = (time.process_time() - cpu) / (3 * times)
    if rank == 0:
        size_mb = gradient.numel() * 4 / 1e6
        # Two processes: 2 (n − 1) / n = 1, so that the bytes on the link are the gradient's.
        Path(result).write_text(json.dumps({"per_s": size_mb / seconds, "core_ms": 1000 * core_s / size_mb}))
    dist.barrier()
    dist.destroy_process_group()
