"""Jobs on a Ray cluster, by Ray's job API: the head's dashboard, over HTTP, with a token."""

import asyncio
import logging
import math
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.jobs.archive import check_wheel, write_archive
from cluster.jobs.entrypoint import CONFIG_VARIABLE, PROGRAM
from cluster.jobs.job import Job, JobState, JobStatus, read_error, read_result
from index.base.errors import FslDistError, RequestError
from index.base.extras import require
from index.base.scratch import scratch_folder

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"

_CONNECT_S = 5.0
_STOP_S = 60.0
_RETRY_S = 2.0
_LONGEST_SILENCE_S = 120.0
# A string of a process's environment can hold 128 KiB on Linux.
_CONFIG_BYTES = 120_000


class RayPlace:
    """The Ray cluster at `address`, the URL of its dashboard.

    wheel: what is sent instead of the code that runs here. ships: whether anything is sent; if not, the cluster's own
    installation runs. The token is that of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Raises RequestError where nothing answers at `address`, or where the token is missing or wrong.
    """

    def __init__(self, address: str = "", *, wheel: Path | None = None, ships: bool = True) -> None:
        require("ray")
        address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        self._address = address if "://" in address else f"http://{address}"
        self._wheel, self._ships = wheel, ships
        if wheel is not None:
            check_wheel(wheel)
        self._client = self._connect()

    def submit(self, job: Job) -> None:
        """Send the project and start the job on the cluster's head."""
        if len(job.config.encode()) > _CONFIG_BYTES:
            raise RequestError(
                f"the configuration has {len(job.config.encode())} bytes, and a job carries {_CONFIG_BYTES}; put lists into files"
            )
        if self._details(job.name) is not None:
            raise RequestError(self._exists(job.name))
        import ray

        # From the home folder: the working folder is Ray's copy of the project, which Ray removes.
        entrypoint = "cd ~ && exec " + shlex.join(
            ["python", *PROGRAM, "job", "enter", "--ray-version", ray.__version__, "--", *job.arguments]
        )
        environment = {CONFIG_VARIABLE: job.config} if job.config else {}
        with scratch_folder("fsl-ship-") as scratch, self._told():
            runtime: dict[str, Any] = {"env_vars": environment}
            if self._ships:
                # Named .zip, so that Ray unpacks it: a .whl it would install by pip, dependencies and all.
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
        """How a job stands, by Ray's own account of it."""
        details = self._details(name)
        if details is None:
            raise RequestError(
                f"there is no job {name} at {self._address} (fsl-dist job list --to ray names them)"
            )
        status = _status_of(details)
        if status.state == "succeeded":
            with self._told():
                log_text = self._client.get_job_logs(name)
            status = _status_of(details, read_result(log_text))
        return status

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The job's log; a connection that breaks is made again, and nothing is told twice."""
        if not follow or self.status(name).is_over:
            with self._told():
                yield self._client.get_job_logs(name)
            return
        import aiohttp

        told, failing_since = 0, math.inf
        while True:
            position = 0
            try:
                for piece in self._tail(name):
                    new = piece[max(0, told - position) :]
                    position += len(piece)
                    told = max(told, position)
                    if new:
                        yield new
                if self.status(name).is_over:
                    return
                failing_since = math.inf
            except (aiohttp.ClientError, OSError, RuntimeError, FslDistError) as error:
                failing_since = min(failing_since, time.monotonic())
                if time.monotonic() - failing_since > _LONGEST_SILENCE_S:
                    raise FslDistError(
                        f"{self._address} has not answered for {_LONGEST_SILENCE_S:g} s ({_say(error)}); the job may run on: "
                        f"fsl-dist job logs {name} --follow --to ray"
                    ) from None
            time.sleep(_RETRY_S)

    def stop(self, name: str) -> None:
        """Ask Ray to end the job (SIGTERM, then SIGKILL after RAY_JOB_STOP_WAIT_TIME_S of the cluster), and wait for that."""
        if self.status(name).is_over:
            return
        with self._told():
            self._client.stop_job(name)
        deadline = time.monotonic() + _STOP_S
        while not self.status(name).is_over:
            if time.monotonic() > deadline:
                raise FslDistError(
                    f"job {name} has not ended {_STOP_S:g} s after it was asked to; see fsl-dist job status {name} --to ray"
                )
            time.sleep(0.3)

    def list(self) -> list[JobStatus]:
        """All jobs that were submitted to the cluster, whoever did, the newest first."""
        with self._told():
            found = [details for details in self._client.list_jobs() if details.submission_id]
        found.sort(key=lambda details: details.start_time or 0, reverse=True)
        return [_status_of(details) for details in found]

    def _connect(self) -> "JobSubmissionClient":
        url = urlsplit(self._address)
        try:
            port = url.port or (443 if url.scheme == "https" else 8265)
        except ValueError:
            port = 0
        if url.scheme not in ("http", "https") or not url.hostname or not port:
            raise RequestError(
                f"--address {self._address} must be the URL of a Ray dashboard, such as {DEFAULT_ADDRESS}"
            )
        try:
            socket.create_connection((url.hostname, port), timeout=_CONNECT_S).close()
        except OSError as error:
            raise RequestError(
                f"no Ray cluster answers at {self._address} ({error}); --address or {ADDRESS_VARIABLE} names its dashboard, and "
                "from outside Kubernetes kubectl port-forward opens the way to it"
            ) from None
        headers = {"Authorization": f"Bearer {token}"} if (token := _read_token()) else None
        # Ray takes the address from the environment before the one it is given.
        os.environ[ADDRESS_VARIABLE] = self._address
        from ray.job_submission import JobSubmissionClient

        # It says what it uploads and how its connections close.
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        with self._told():
            return JobSubmissionClient(self._address, headers=headers)

    def _details(self, name: str) -> "JobDetails | None":
        with self._told():
            try:
                return self._client.get_job_info(name)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

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
    def _told(self) -> Iterator[None]:
        """Ray's errors in one line each, with the way out."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            is_missing = "Missing" in str(error) or "couldn't find" in str(error)
            raise RequestError(
                f"the Ray cluster at {self._address} "
                + ("asks for a token, and none was found (401)" if is_missing else "refuses the token (403)")
                + ": RAY_AUTH_TOKEN holds the cluster's, or RAY_AUTH_TOKEN_PATH names a file that does"
            ) from None
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise RequestError(f"no Ray job API answers at {self._address}: {_say(error)}") from None
        except RuntimeError as error:
            raise FslDistError(f"the Ray cluster at {self._address}: {_say(error)}") from None

    def _exists(self, name: str) -> str:
        return f"a job {name} exists at {self._address} (another --name; a cluster keeps the names of jobs that ended)"


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
    """The first line of a message; of a traceback the last, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(". ")]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in lines[0] else lines[0]
