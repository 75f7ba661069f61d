"""Other packages' log lines, while a block runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_from(name: str, level: int) -> Iterator[None]:
    """Let the logger `name` pass only what is of this level or above, while the block runs."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
