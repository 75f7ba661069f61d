"""Every error that a user can meet is one line: field, rule, value, location, way out.

FslDistError                 something failed while the work ran            exit 1
├── RequestError             the request itself cannot be served            exit 2
│   └── ConfigError          a configuration key or value is wrong          exit 2
├── StorageError             an object store failed in the middle           exit 1
├── VersionError             a published version is missing or damaged      exit 1
├── StaleOwnerError          a newer process owns this folder               exit 1
└── PartialSearchError       a shard of the index did not answer            exit 1
"""


class FslDistError(Exception):
    """Base class of all errors that are reported in one line, without a traceback."""

    exit_code = 1


class RequestError(FslDistError):
    """The request is invalid; nothing was written."""

    exit_code = 2


class ConfigError(RequestError):
    """A configuration key is unknown or its value breaks a rule."""


class StorageError(FslDistError):
    """An object store failed, or did not respond in time."""


class VersionError(FslDistError):
    """A published version (index, catalogue, checkpoint) is missing, incomplete or damaged."""


class StaleOwnerError(FslDistError):
    """Another process has taken over the folder; this process must no longer write to it."""


class PartialSearchError(FslDistError):
    """A shard of a distributed index did not answer and partial results were not allowed."""
