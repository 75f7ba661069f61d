"""Errors of a run; the tree they belong to is drawn in `index.errors`.

FslDistError
├── DataError                a data set's files do not hold what they promise
└── TrainingError            a run cannot go on
"""

from index.errors import ConfigError, FslDistError, RequestError, StaleOwnerError, VersionError

__all__ = [
    "ConfigError",
    "DataError",
    "FslDistError",
    "RequestError",
    "StaleOwnerError",
    "TrainingError",
    "VersionError",
]


class DataError(FslDistError):
    """A shard, a catalogue or a sample does not hold what it promises."""


class TrainingError(FslDistError):
    """A run cannot go on: a loss is not finite, a checkpoint does not fit."""
