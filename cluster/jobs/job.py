"""A job: one `fsl-dist` command that runs elsewhere, and the interface of all targets that run jobs."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from index.base.errors import FslDistError, RequestError

RESULT_MARK = "fsl-dist-result: "
"""what precedes the job's JSON result, on one line of its log"""

FINAL_MARK = "fsl-dist-final: "
"""what precedes, on one line of the log, the exit code of a command that a retry cannot help"""

JobState = Literal["pending", "running", "succeeded", "failed", "stopped"]

LONGEST_NAME = 47
"""longest name of a RayJob, in characters; KubeRay appends its own suffix"""


class WaitedError(FslDistError):
    """A job did not start within the time limit; it still waits."""

    exit_code = 3


class LostSightError(FslDistError):
    """The target of a job does not answer; the job may still run."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A command to run."""

    name: str
    """letters, digits and hyphens, a letter first, at most 47 characters: a DNS label everywhere"""
    arguments: tuple[str, ...]
    """the command line after `fsl-dist`, without `--config FILE`"""
    config: str = ""
    """text of the YAML that `--config` named, with everything it refers to inside; it travels with the job"""

    def __post_init__(self) -> None:
        if len(self.name) > LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name):
            raise RequestError(
                f"--name {self.name!r} must be lower-case letters, digits and hyphens, a letter first, at most {LONGEST_NAME} "
                "characters"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """The status of a job."""

    name: str
    state: JobState
    command: str = ""
    started: str = ""
    """date and time, UTC; empty before the start"""
    ended: str = ""
    message: str = ""
    """one line: why it failed or waits"""
    deadline: str = ""
    """date and time, UTC, by which it must end; empty: none"""
    is_late: bool = False
    """whether its deadline has passed and it has not ended"""
    result: dict | None = None
    """its result, once it succeeded"""
    exit_code: int | None = None
    """of its command, if the target reports it"""

    @property
    def is_over(self) -> bool:
        """Whether it has ended: succeeded, failed or stopped."""
        return self.state in ("succeeded", "failed", "stopped")

    @property
    def follower_exit_code(self) -> int:
        """Exit code of a command that waited for the job: the job's own code, 143 (SIGTERM) for a stopped one."""
        if self.state == "stopped":
            return 143
        if self.state == "succeeded":
            return 0
        return self.exit_code or 1


class JobPlace(Protocol):
    """Where jobs run: this machine, a Ray cluster, Kubernetes with KubeRay."""

    def submit(self, job: Job) -> None:
        """Start a job; it outlives this process. Raises RequestError for a name that exists."""
        ...

    def status(self, name: str) -> JobStatus:
        """The status of a job. Raises RequestError for an unknown name."""
        ...

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """Its log so far, in pieces; with follow, until it ends."""
        ...

    def tail(self, name: str) -> str:
        """The end of its log so far, 200 lines or 64 KiB, in which a progress line is the newest of its kind."""
        ...

    def stop(self, name: str) -> None:
        """End it; what it has stored is kept."""
        ...

    def list(self) -> list[JobStatus]:
        """All jobs of the target, the newest first."""
        ...


def read_result(log: str) -> dict | None:
    """The job's result in its log: the last line that begins with RESULT_MARK; None if there is none."""
    _, mark, tail = log.rpartition("\n" + RESULT_MARK)
    if not mark:
        if not log.startswith(RESULT_MARK):
            return None
        tail = log.removeprefix(RESULT_MARK)
    try:
        result = json.loads(tail.partition("\n")[0])
    except ValueError:  # cut off in the middle
        return None
    return result if isinstance(result, dict) else None


def read_final(log: str) -> int | None:
    """The exit code, from a job's log, of a command that a retry cannot help; None if the log has none."""
    found = re.findall(rf"^{FINAL_MARK}(\d+)$", log, re.M)
    return int(found[-1]) if found else None


def read_error(log: str) -> str:
    """The last error line of the command; empty if it has none."""
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else ""
