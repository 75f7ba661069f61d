"""Numbers too small for full precision, which a processor computes with up to a hundred times slower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Take float32 results below 1.2e-38 for 0 in here, on the CPU; threads that begin in here do so for good.

    Gradients and momenta that die out end there; with them a step can take a multiple of the time. To be entered before the
    process's first computation, since torch keeps the threads that its first one starts.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
