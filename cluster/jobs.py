"""A job: one `fsl-dist` command that runs somewhere else, and what every place that runs jobs can do."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from index.errors import RequestError

RESULT_MARK = "fsl-dist-result: "
"""what precedes the job's JSON result, on one line of its log"""

JobState = Literal["pending", "running", "succeeded", "failed", "stopped"]

_LONGEST_NAME = 47
"""of a RayJob; KubeRay puts its own ending after it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to run."""

    name: str
    """letters, digits and hyphens, a letter first, at most 47 characters: a DNS label everywhere"""
    arguments: tuple[str, ...]
    """the command line after `fsl-dist`, without `--config FILE`"""
    config: str = ""
    """text of the YAML that `--config` named, with everything it refers to inside; it travels with the job"""

    def __post_init__(self) -> None:
        if len(self.name) > _LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name):
            raise RequestError(
                f"--name {self.name!r} must be lower-case letters, digits and hyphens, a letter first, at most {_LONGEST_NAME} "
                "characters"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """How a job stands."""

    name: str
    state: JobState
    command: str = ""
    started: str = ""
    """date and time, UTC; empty before"""
    ended: str = ""
    message: str = ""
    """one line: why it failed or waits"""
    result: dict | None = None
    """its result, once it succeeded"""


class JobPlace(Protocol):
    """Where jobs run: this machine, a Ray cluster, Kubernetes with KubeRay."""

    def submit(self, job: Job) -> None:
        """Start a job; it lives on when this process ends. RequestError for a name that exists."""
        ...

    def status(self, name: str) -> JobStatus:
        """How a job stands. RequestError where there is none of this name."""
        ...

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """What it wrote so far, in pieces; with follow until it ends."""
        ...

    def stop(self, name: str) -> None:
        """End it; what it has stored stays."""
        ...

    def list(self) -> list[JobStatus]:
        """All jobs that the place knows of, the newest first."""
        ...
