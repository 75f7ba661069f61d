"""Switches that hold for a whole process: what FAISS, the C library and the processor do faster if they are asked to.

Importing this, or any package, switches nothing. `faiss` names the processor to OpenBLAS when it is first used; the other
switches are called by what does the work: searches, embedders, training workers.
"""

import contextlib
import ctypes
import functools
import importlib
import os
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

_CORETYPE = "OPENBLAS_CORETYPE"
# Processors that OpenBLAS knows, the best first, and what a processor must be able to do for their products.
_CORES = (
    ("SKYLAKEX", {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}),
    ("HASWELL", {"avx2", "fma"}),
)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h"""
_OWN_MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def name_processor(description: Path = Path("/proc/cpuinfo")) -> None:
    """Name an Intel processor to OpenBLAS by what it can do, before a process loads it; OPENBLAS_CORETYPE in the environment counts.

    FAISS's wheel brings OpenBLAS 0.3.15, which knows no Intel processor since Sapphire Rapids and computes for one of 2004
    there, by four numbers at a time: kNN scores of 5,000 queries among 20,000 × 256 took 2.4 times as long
    (`python -m benchmarks.suite evaluate`). Child processes have the name too.

    Args:
        description: Linux's; without it nothing is named.
    """
    if _CORETYPE in os.environ:
        return
    fields: dict[str, str] = {}
    try:
        with description.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:  # the first processor's
                name, _, value = line.partition(":")
                fields[name.strip()] = value
                if not line.strip():
                    break
    except OSError:
        return
    if "GenuineIntel" not in fields.get("vendor_id", ""):
        return
    able = set(fields.get("flags", "").split())
    if core := next((core for core, needed in _CORES if needed <= able), None):
        os.environ[_CORETYPE] = core


@functools.cache
def _load_faiss() -> ModuleType:
    name_processor()
    return importlib.import_module("faiss")


class _Faiss:
    def __getattr__(self, name: str) -> Any:
        return getattr(_load_faiss(), name)


if TYPE_CHECKING:
    import faiss as faiss
else:
    faiss = _Faiss()
    """FAISS, loaded for this processor when it is first used (0.2 s)."""


_condition = threading.Condition()
_users = 0
_default = 0


@contextlib.contextmanager
def matrix_product_from(least: int, num_queries: int) -> Iterator[None]:
    """Let FAISS use the matrix product where there are `least` queries, and nothing else; its own rule is 8 times slower between.

    The choice is one global of FAISS, so threads that want the other one wait; those that want the same work
    concurrently.
    """
    global _users, _default
    wanted = 1 if num_queries >= least else 1 << 30
    with _condition:
        while _users and faiss.cvar.distance_compute_blas_threshold != wanted:
            _condition.wait()
        if not _users:
            _default = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = wanted
        _users += 1
    try:
        yield
    finally:
        with _condition:
            _users -= 1
            if not _users:
                faiss.cvar.distance_compute_blas_threshold = _default
                _condition.notify_all()


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep freed memory for its next allocations, pieces of up to 1 GiB, until it ends.

    By itself the C library gives large pieces, such as a network's outputs, back to the system at once; they are mapped
    again with the next step, and the system clears each of their pages: a third of Conv4's step, half of MobileNetV2's
    embedding (`python -m benchmarks.suite train`). The process stays as large as it once was.

    Returns whether memory is kept: not without glibc, and not where the environment says how malloc is to be
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES). Memory of a GPU is torch's own.
    """
    if any(name in os.environ for name in _OWN_MALLOC):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


@contextlib.contextmanager
def flushing_denormals(set_flush: Callable[[bool], object]) -> Iterator[None]:
    """Take float32 results below 1.2e-38 for 0 in here, on the CPU; threads that begin in here do so for good.

    A processor computes with such numbers up to a hundred times slower, and gradients and momenta that die out end there:
    a step can take a multiple of the time. To be entered before the process's first computation, since torch keeps the
    threads that its first one starts.

    Args:
        set_flush: `torch.set_flush_denormal`; this package does not know torch.
    """
    set_flush(True)
    try:
        yield
    finally:
        set_flush(False)
