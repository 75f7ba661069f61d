"""Which processor FAISS's matrix products are made for.

FAISS's wheel brings OpenBLAS 0.3.15, which knows no Intel processor since Sapphire Rapids and computes for one of 2004 there, by
four numbers at a time: kNN scores of 5,000 queries among 20,000 × 256 took 2.4 times as long (`python -m benchmarks.suite evaluate`).
"""

import os
from pathlib import Path

_VARIABLE = "OPENBLAS_CORETYPE"
# Processors that OpenBLAS knows, the best first, and what a processor must be able to do for their products.
_CORES = (
    ("SKYLAKEX", {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}),
    ("HASWELL", {"avx2", "fma"}),
)


def name_processor(description: Path = Path("/proc/cpuinfo")) -> None:
    """Name an Intel processor to OpenBLAS by what it can do, before a process loads it; OPENBLAS_CORETYPE in the environment counts.

    description: Linux's; without it nothing is named. Child processes have the name too.
    """
    if _VARIABLE in os.environ:
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
        os.environ[_VARIABLE] = core
