"""Suppress other packages' log lines during a block."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_from(name: str, level: int) -> Iterator[None]:
    """Let the logger `name` pass only records of this level or above during the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
