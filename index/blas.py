"""Choosing FAISS's way to compute distances: one by one, or by a matrix product."""

import contextlib
import threading
from collections.abc import Iterator

import faiss

_condition = threading.Condition()
_users = 0
_default = 0


@contextlib.contextmanager
def matrix_product_from(least: int, num_queries: int) -> Iterator[None]:
    """Let FAISS use the matrix product where there are `least` queries, and nothing else; its own rule is 8 times slower between.

    The choice is one global of FAISS, so threads that want the other one wait; those that want the same work
    side by side.
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
