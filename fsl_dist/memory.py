"""What the C library does with memory that PyTorch frees: by itself it gives large pieces back to the system at once.

A network's outputs are such pieces. Given back, they come anew with every step, and the system clears each page of them again:
a third of Conv4's step, half of MobileNetV2's embedding (`python -m benchmarks.suite train`).
"""

import ctypes
import functools
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h"""
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep freed memory for its next allocations, pieces of up to 1 GiB; it ends with the process.

    The process stays as large as it once was. Returns whether that is so: not without glibc, and not where the environment
    says how malloc is to be (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES). Memory of a GPU is torch's own.
    """
    if any(name in os.environ for name in _OWN_SETTINGS):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
