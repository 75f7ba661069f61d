"""Process-wide performance options of FAISS, the C library and the processor.

Importing this package changes nothing. `faiss` selects the processor for OpenBLAS at its first use; the code that
does the work sets the other options: searches, embedders, training workers.
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
# Processors that OpenBLAS knows, best first, and the CPU features that their kernels need.
_CORES = (
    ("SKYLAKEX", {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}),
    ("HASWELL", {"avx2", "fma"}),
)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h"""
_OWN_MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def name_processor(description: Path = Path("/proc/cpuinfo")) -> None:
    """Tell OpenBLAS the Intel processor by its features, before it is loaded; an existing OPENBLAS_CORETYPE is kept.

    FAISS's wheel contains OpenBLAS 0.3.15, which predates Intel's processors from Sapphire Rapids on. There it uses
    kernels for one of 2004, with four numbers at a time: kNN scores of 5,000 queries among 20,000 × 256 took 2.4
    times as long (`python -m benchmarks.suite evaluate`). Child processes inherit the setting.

    Args:
        description: Linux's CPU information; if the file is missing, nothing is set.
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


class matrix_product_from:
    """Let FAISS use the matrix product from `least` queries on; between the limits its own rule is 8 times slower.

    The choice is one global variable of FAISS, so threads that need another value wait; threads with the same value run
    concurrently. A class because a generator as context manager takes 1.5 µs more, for each query.
    """

    __slots__ = ("_wanted",)

    def __init__(self, least: int, num_queries: int) -> None:
        self._wanted = 1 if num_queries >= least else 1 << 30

    def __enter__(self) -> None:
        global _users, _default
        options = _load_faiss().cvar
        with _condition:
            while _users and options.distance_compute_blas_threshold != self._wanted:
                _condition.wait()
            if not _users:
                _default = options.distance_compute_blas_threshold
                options.distance_compute_blas_threshold = self._wanted
            _users += 1

    def __exit__(self, *_: object) -> None:
        global _users
        with _condition:
            _users -= 1
            if not _users:
                _load_faiss().cvar.distance_compute_blas_threshold = _default
                _condition.notify_all()


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations, in pieces of up to 1 GiB, until it ends.

    By default the C library returns large pieces, such as a network's outputs, to the system at once. They are mapped
    again at the next step, and the system clears every page: a third of Conv4's step, half of MobileNetV2's embedding
    (`python -m benchmarks.suite train`). The process keeps its largest size.

    Returns:
        Whether memory is kept: not without glibc, and not if the environment configures malloc
        (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES). GPU memory is managed by torch.
    """
    if any(name in os.environ for name in _OWN_MALLOC):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


@contextlib.contextmanager
def flushing_denormals(set_flush: Callable[[bool], object]) -> Iterator[None]:
    """Treat float32 results below 1.2e-38 as 0 in this block, on the CPU; threads that start in it keep the setting.

    A processor is up to a hundred times slower with such numbers, and vanishing gradients and momenta become such
    numbers: a step can take several times as long. Enter the block before the first computation of the process, since
    torch keeps the threads that its first computation starts.

    Args:
        set_flush: `torch.set_flush_denormal`; passed in, because this package does not import torch.
    """
    set_flush(True)
    try:
        yield
    finally:
        set_flush(False)
