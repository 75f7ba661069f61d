"""Errors of a run; the whole error tree is drawn in `index.base.errors`.

FslDistError
├── RequestError
│   └── CapacityError        the Ray cluster has less than the request needs
├── DataError                a data set's files are damaged or missing
│   └── UndecodableError     one image of a batch cannot be decoded
└── TrainingError            a run cannot continue
"""

from index.base.errors import ConfigError, FslDistError, RequestError, StaleOwnerError, VersionError

__all__ = [
    "CapacityError",
    "ConfigError",
    "DataError",
    "FslDistError",
    "RequestError",
    "StaleOwnerError",
    "TrainingError",
    "UndecodableError",
    "VersionError",
]


class CapacityError(RequestError):
    """The Ray cluster has less than a request needs; it may have more later."""


class DataError(FslDistError):
    """A shard, a catalogue or a sample is damaged or missing."""


class UndecodableError(DataError):
    """The image at `position` of a batch cannot be decoded, for `reason`."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"image {position} of the batch cannot be decoded: {reason}")
        self.position = position
        self.reason = reason


class TrainingError(FslDistError):
    """A run cannot continue: a loss is not finite, a checkpoint does not fit."""
