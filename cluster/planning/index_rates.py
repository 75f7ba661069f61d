"""Timing one thing, and with it the rates of an index: writing, publishing and searching."""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cluster.planning.rates import Rate
from cluster.planning.scaling_model import looked_at
from index import IndexConfig, RequestError, Staging, open_index

log = logging.getLogger(__name__)

ROUNDS = 3  # the best one counts: other programs can only slow a round down
_VECTORS, _QUERIES, _CLASSES = 20_000, 2_048, 100
_NUMBERS = 1 << 25  # in the vectors at most: 128 MiB


def time_rate(do: Callable[[int], float], rounds: int = ROUNDS, source: str = "measured") -> Rate:
    """The best of several rounds of `do(number of the round)`, which returns the number of units that it did."""
    walls, cores = [], []
    for number in range(rounds):
        cpu, wall = time.process_time(), time.perf_counter()
        units = do(number)
        walls.append((time.perf_counter() - wall) / units)
        cores.append((time.process_time() - cpu) / units)
    return Rate(
        per_s=float(f"{1 / min(walls):.4g}"), core_ms=float(f"{1000 * min(cores):.4g}"), source=source
    )


def index_rates(config: IndexConfig, dim: int, out: Path) -> dict:
    """Rates of writing, publishing and searching an index of random vectors, and its number of vectors."""
    num = max(_QUERIES, min(_VECTORS, _NUMBERS // dim))
    vectors = np.random.default_rng(0).normal(size=(num, dim)).astype(np.float32)
    labels, ids = np.sort(np.arange(num) % _CLASSES), np.arange(num)
    config = dataclasses.replace(config, shards=1)
    staging = Staging.create(out, "rates")

    def write(number: int) -> int:
        staging.write_shard(0, vectors, config.metric)
        return num

    rates: dict = {"vectors": num, "index_write": time_rate(write)}

    def publish(number: int) -> int:
        staging.publish(labels, ids, config, {})
        return num

    rates["index_publish"] = time_rate(publish, rounds=1)
    opened = open_index(out, verify=False, device=config.device)
    try:
        share = looked_at(config, dim, num)
    except RequestError as error:
        log.warning("the search is not measured: %s", error)
        return rates

    def search(number: int) -> float:
        rows = slice(number * _QUERIES, (number + 1) * _QUERIES) if num >= ROUNDS * _QUERIES else slice(num)
        asked = vectors[rows]
        opened.neighbours(asked, labels[rows], ids[rows], 5, 5)
        return len(asked) * num * share

    rates["mining"] = time_rate(search)
    return rates
