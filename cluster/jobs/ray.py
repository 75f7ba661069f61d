"""Jobs on a Ray cluster, through Ray's job API: the dashboard of the head, over HTTP, with a token."""

import asyncio
import logging
import os
import random
import re
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cluster.jobs.archive import check_wheel, write_archive
from cluster.jobs.capacity import Machine
from cluster.jobs.entrypoint import CONFIG_VARIABLE, PROGRAM
from cluster.jobs.job import Job, JobState, JobStatus, LostSightError, read_error, read_result
from index.base.errors import FslDistError, RequestError
from index.base.extras import require
from index.base.scratch import scratch_folder

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"

_CONNECT_S = 5.0
_STOP_S = 60.0
_RETRY_S, _LONGEST_RETRY_S = 1.0, 15.0
# A string of a process's environment can hold 128 KiB on Linux.
_CONFIG_BYTES = 120_000
_TAIL_CHARACTERS = 64 << 10


class _AwayError(RequestError):
    """The dashboard did not answer; if it never has, the address is wrong."""


class RayPlace:
    """The Ray cluster at `address`, the URL of its dashboard.

    The token comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Args:
        address: URL of the dashboard; empty: that of RAY_API_SERVER_ADDRESS, else port 8265 of this machine.
        wheel: sent instead of the code that runs here.
        ships: whether code is sent; otherwise the cluster's own installation runs.
        timeout_s: seconds for which a request is repeated while the dashboard does not answer.

    Raises:
        RequestError: nothing answers at `address`, or the token is missing or wrong.
    """

    def __init__(
        self, address: str = "", *, wheel: Path | None = None, ships: bool = True, timeout_s: float = 300.0
    ) -> None:
        require("ray")
        address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        self.address = address if "://" in address else f"http://{address}"
        self._wheel, self._ships, self._timeout_s = wheel, ships, timeout_s
        if wheel is not None:
            check_wheel(wheel)
        self._client = self._connect()

    def submit(self, job: Job) -> None:
        """Send the project and start the job on the cluster's head."""
        if len(job.config.encode()) > _CONFIG_BYTES:
            raise RequestError(
                f"the configuration has {len(job.config.encode())} bytes, and a job carries at most {_CONFIG_BYTES}; put lists into files"
            )
        if self._details(job.name) is not None:
            raise RequestError(self._exists(job.name))
        import ray

        # Run in the home folder: the working folder is Ray's copy of the project, which Ray removes.
        entrypoint = "cd ~ && exec " + shlex.join(
            ["python", *PROGRAM, "job", "enter", "--ray-version", ray.__version__, "--", *job.arguments]
        )
        environment = {CONFIG_VARIABLE: job.config} if job.config else {}
        with scratch_folder("fsl-ship-") as scratch, self._explained():
            runtime: dict[str, Any] = {"env_vars": environment}
            if self._ships:
                # Named .zip, so that Ray unpacks it; it would install a .whl by pip, with all dependencies.
                package = scratch / "fsl_dist.zip"
                if self._wheel is None:
                    write_archive(package)
                else:
                    shutil.copyfile(self._wheel, package)
                runtime["working_dir"] = str(package)
            command = " ".join(("fsl-dist", *job.arguments))
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job.name,
                    runtime_env=runtime,
                    metadata={"command": command},
                )
            except RuntimeError as error:
                if "already exists" in str(error):  # another submitter was faster
                    raise RequestError(self._exists(job.name)) from None
                raise

    def status(self, name: str) -> JobStatus:
        """The status of a job, as Ray reports it."""
        details = self._details(name)
        if details is None:
            raise RequestError(
                f"there is no job {name} at {self.address} (fsl-dist job list --to ray names them)"
            )
        status = _status_of(details)
        if status.state == "succeeded":
            status = _status_of(details, read_result(self._ask(lambda: self._client.get_job_logs(name))))
        return status

    def machines(self) -> list[Machine]:
        """The resources of the nodes that are up."""
        from ray.util.state.api import StateApiClient
        from ray.util.state.common import ListApiOptions, StateResource

        options = ListApiOptions(limit=10_000, filters=[("state", "=", "ALIVE")])

        def list_nodes() -> list[dict]:
            client = StateApiClient(address=self.address, headers=_headers())
            return client.list(StateResource.NODES, options, raise_on_missing_output=False)

        shares = [node["resources_total"] for node in self._ask(list_nodes)]
        return [Machine(cpus=share.get("CPU", 0.0), gpus=share.get("GPU", 0.0)) for share in shares]

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The job's log; broken connections are reopened, and no line is repeated."""
        if not follow or self.status(name).is_over:
            yield self._ask(lambda: self._client.get_job_logs(name))
            return
        import aiohttp

        num_read = 0
        while True:
            position = 0
            try:
                for piece in self._tail(name):
                    new = piece[max(0, num_read - position) :]
                    position += len(piece)
                    num_read = max(num_read, position)
                    if new:
                        yield new
            except (aiohttp.ClientError, OSError, RuntimeError) as error:
                log.warning("the log of %s broke off (%s); requesting it again", name, _say(error))
                time.sleep(_RETRY_S)
            if self.status(name).is_over:
                # The connection may have broken off before the last words.
                yield self._ask(lambda: self._client.get_job_logs(name))[num_read:]
                return

    def tail(self, name: str) -> str:
        """The last 64 KiB of the job's log, all of which Ray sends."""
        return self._ask(lambda: self._client.get_job_logs(name))[-_TAIL_CHARACTERS:]

    def stop(self, name: str) -> None:
        """End the job and wait for that: SIGTERM, then SIGKILL after the cluster's RAY_JOB_STOP_WAIT_TIME_S."""
        if self.status(name).is_over:
            return
        with self._explained():
            self._client.stop_job(name)
        deadline = time.monotonic() + _STOP_S
        while not self.status(name).is_over:
            if time.monotonic() > deadline:
                raise FslDistError(
                    f"job {name} has not ended {_STOP_S:g} s after the request to stop; see fsl-dist job status {name} --to ray"
                )
            time.sleep(0.3)

    def list(self) -> list[JobStatus]:
        """All jobs of the cluster, whoever submitted them, the newest first."""
        found = [details for details in self._ask(self._client.list_jobs) if details.submission_id]
        found.sort(key=lambda details: details.start_time or 0, reverse=True)
        return [_status_of(details) for details in found]

    def _connect(self) -> "JobSubmissionClient":
        url = urlsplit(self.address)
        try:
            port = url.port or (443 if url.scheme == "https" else 8265)
        except ValueError:
            port = 0
        if url.scheme not in ("http", "https") or not url.hostname or not port:
            raise RequestError(
                f"--address {self.address} must be the URL of a Ray dashboard, such as {DEFAULT_ADDRESS}"
            )
        try:
            socket.create_connection((url.hostname, port), timeout=_CONNECT_S).close()
        except OSError as error:
            raise RequestError(
                f"no Ray cluster answers at {self.address} ({error}); give the URL of its dashboard as --address or {ADDRESS_VARIABLE}; "
                "from outside Kubernetes, kubectl port-forward makes it reachable"
            ) from None
        # Ray prefers the address of the environment to its argument.
        os.environ[ADDRESS_VARIABLE] = self.address
        from ray.job_submission import JobSubmissionClient

        # These loggers report each upload and each closed connection.
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        with self._explained():
            return JobSubmissionClient(self.address, headers=_headers())

    def _details(self, name: str) -> "JobDetails | None":
        def find() -> "JobDetails | None":
            try:
                return self._client.get_job_info(name)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

        return self._ask(find)

    def _ask(self, call: Callable[[], _Answer]) -> _Answer:
        """The answer to a read-only request, repeated while the dashboard is unreachable. Raises LostSightError."""
        deadline, pause_s, is_said = time.monotonic() + self._timeout_s, _RETRY_S, False
        while True:
            try:
                with self._explained():
                    return call()
            except _AwayError as error:
                if time.monotonic() >= deadline:
                    raise LostSightError(
                        f"{error}; requests were repeated for {self._timeout_s:g} s (api_timeout_s={self._timeout_s:g})"
                    ) from None
                if not is_said:
                    log.warning("%s; trying again for %g s", error, self._timeout_s)
                    is_said = True
                time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause_s = min(2 * pause_s, _LONGEST_RETRY_S)

    def _tail(self, name: str) -> Iterator[str]:
        """The log from its beginning, piece by piece, until the job ends."""
        loop = asyncio.new_event_loop()
        try:
            pieces = self._client.tail_job_logs(name)
            while True:
                try:
                    yield loop.run_until_complete(anext(pieces))
                except StopAsyncIteration:
                    return
        finally:
            # Also after Ctrl-C, in the middle of a piece.
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns Ray's errors into one line each, with what to do."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            is_missing = "Missing" in str(error) or "couldn't find" in str(error)
            raise RequestError(
                f"the Ray cluster at {self.address} "
                + ("asks for a token, and none was found (401)" if is_missing else "refuses the token (403)")
                + ": set RAY_AUTH_TOKEN to the cluster's token, or RAY_AUTH_TOKEN_PATH to a file with it"
            ) from None
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise _AwayError(f"no Ray job API answers at {self.address}: {_say(error)}") from None
        except RuntimeError as error:
            # A head that has just started answers so, and so does what is no head.
            if "Jobs API is not supported" in str(error):
                raise _AwayError(f"no Ray job API answers at {self.address}: {_say(error)}") from None
            if re.search(r"status code (429|50[234])", str(error)):
                raise _AwayError(f"the Ray cluster at {self.address} is busy: {_say(error)}") from None
            raise FslDistError(f"the Ray cluster at {self.address}: {_say(error)}") from None

    def _exists(self, name: str) -> str:
        return f"a job {name} exists at {self.address} (choose another --name; a cluster keeps the names of ended jobs)"


def stop_own_job(name: str) -> None:
    """Ask the cluster to stop the job of this process. Raises FslDistError."""
    require("ray")
    import requests
    from ray.job_submission import JobSubmissionClient

    try:
        # The address of the cluster is in the environment of Ray's jobs.
        JobSubmissionClient(headers=_headers()).stop_job(name)
    except (RuntimeError, ValueError, ConnectionError, requests.exceptions.RequestException) as error:
        raise FslDistError(_say(error)) from None


def _headers() -> dict[str, str] | None:
    return {"Authorization": f"Bearer {token}"} if (token := _read_token()) else None


def _read_token() -> str:
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        if named:
            raise RequestError(f"RAY_AUTH_TOKEN_PATH={named} cannot be read: {error.strerror}") from None
        return ""


def _status_of(details: "JobDetails", result: dict | None = None) -> JobStatus:
    state: JobState = details.status.value.lower()  # the five words are Ray's
    message = details.message or ""
    return JobStatus(
        name=details.submission_id or "",
        state=state,
        command=(details.metadata or {}).get("command", details.entrypoint or ""),
        started=_show_time(details.start_time),
        ended=_show_time(details.end_time),
        message=(read_error(message) or _say(message)) if state in ("failed", "pending") else "",
        result=result,
        exit_code=details.driver_exit_code,
    )


def _show_time(milliseconds: int | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds / 1000)) if milliseconds else ""


def _say(error: object) -> str:
    """The first line of a message; of a traceback, the last, which has the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(". ")]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in lines[0] else lines[0]
