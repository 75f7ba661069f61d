"""Errors of a run; the tree they belong to is drawn in `index.base.errors`.

FslDistError
├── DataError                a data set's files do not hold what they promise
│   └── UndecodableError     one image of a batch does not decode
└── TrainingError            a run cannot go on
"""

from index.base.errors import ConfigError, FslDistError, RequestError, StaleOwnerError, VersionError

__all__ = [
    "ConfigError",
    "DataError",
    "FslDistError",
    "RequestError",
    "StaleOwnerError",
    "TrainingError",
    "UndecodableError",
    "VersionError",
]


class DataError(FslDistError):
    """A shard, a catalogue or a sample does not hold what it promises."""


class UndecodableError(DataError):
    """The image at `position` of a batch cannot be decoded, for `reason`."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"image {position} of the batch cannot be decoded: {reason}")
        self.position = position
        self.reason = reason


class TrainingError(FslDistError):
    """A run cannot go on: a loss is not finite, a checkpoint does not fit."""
