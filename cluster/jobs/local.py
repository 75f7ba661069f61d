"""Jobs on this machine: detached processes that outlive their submitter, each with its folder."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.jobs.entrypoint import PROGRAM
from cluster.jobs.job import Job, JobState, JobStatus, read_error, read_result
from index.base.checksums import encode_json, read_json
from index.base.errors import RequestError, VersionError
from index.base.files import write_atomic

FOLDER_VARIABLE = "FSL_DIST_JOBS"
"""environment variable that names the folder of jobs"""

# Seconds between SIGTERM and SIGKILL (more than training.grace_s), and for a submitter to start its process.
_GRACE_S = 30.0
_START_S = 10.0
_POLL_S = 0.2
_TAIL_BYTES = 64 << 10


def jobs_folder() -> Path:
    """The folder of all jobs: $FSL_DIST_JOBS, else ~/.fsl-dist/jobs."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".fsl-dist" / "jobs").absolute()


class LocalPlace:
    """A folder per job with `job.json`, `process.json` (pid, start time), `log` and, written last, `exit-code`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or jobs_folder()

    def submit(self, job: Job) -> None:
        """Start the job in a session of its own, in the folder and with the environment of this process."""
        folder = self._folder / job.name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise RequestError(
                f"a job {job.name} exists on this machine (another --name; or remove {folder} once it has ended)"
            ) from None
        (folder / "log").touch()
        command = [sys.executable, *PROGRAM, "job", "enter", "--exit-code-file", str(folder / "exit-code")]
        if job.config:
            config = folder / "config.yaml"
            config.write_text(job.config, encoding="utf-8")
            command += ["--config", str(config)]
        about = {
            "command": " ".join(("fsl-dist", *job.arguments)),
            "submitted": time.time(),
            "folder": str(Path.cwd()),
        }
        write_atomic(folder / "job.json", encode_json(about))
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--", *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        identity = {"pid": process.pid, "started": _start_of(process.pid)}
        write_atomic(folder / "process.json", encode_json(identity))

    def status(self, name: str) -> JobStatus:
        """The status of a job, from its folder and from whether its process is alive."""
        folder = self._find(name)
        about = read_json(folder / "job.json", root=None)
        code = _read_code(folder)
        is_alive = code is None and _is_alive(folder)
        if code is None and not is_alive:
            code = _read_code(folder)  # it may have ended in between
        state, message = self._state(folder, about, code, is_alive)
        log = (
            (folder / "log").read_text("utf-8", errors="replace") if state in ("succeeded", "failed") else ""
        )
        ended = folder / ("exit-code" if code is not None else "log")
        return JobStatus(
            name=name,
            state=state,
            command=about["command"],
            started=_show_time(about["submitted"]),
            ended=_show_time(ended.stat().st_mtime) if state in ("succeeded", "failed", "stopped") else "",
            message=message or (read_error(log) if state == "failed" else ""),
            result=read_result(log) if state == "succeeded" else None,
            exit_code=code,
        )

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The job's log, in pieces as it grows."""
        folder = self._find(name)
        with (folder / "log").open(encoding="utf-8", errors="replace") as log:
            while True:
                is_over = not follow or self.status(name).is_over
                if piece := log.read():
                    yield piece
                elif is_over:
                    return
                if not is_over:
                    time.sleep(_POLL_S)

    def tail(self, name: str) -> str:
        """The last 64 KiB of the job's log."""
        with (self._find(name) / "log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return log.read().decode(errors="replace")

    def stop(self, name: str) -> None:
        """SIGTERM to the job's processes, SIGKILL after 30 seconds."""
        folder = self._find(name)
        state = self.status(name).state
        if state == "pending":
            raise RequestError(f"job {name} is being started; stop it in a moment")
        if state != "running":
            return
        (folder / "stop").touch()
        pid = _identity_of(folder)["pid"]
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
            deadline = time.monotonic() + _GRACE_S
            while time.monotonic() < deadline:
                if not _is_alive(folder):
                    return
                time.sleep(_POLL_S / 2)

    def list(self) -> list[JobStatus]:
        """All jobs of the folder, the newest first."""
        if not self._folder.is_dir():
            return []
        found = [self.status(path.parent.name) for path in self._folder.glob("*/job.json")]
        return sorted(found, key=lambda status: (status.started, status.name), reverse=True)

    def _find(self, name: str) -> Path:
        folder = self._folder / name
        if not (folder / "job.json").is_file():
            raise RequestError(
                f"there is no job {name} on this machine (fsl-dist job list --to local names them)"
            )
        return folder

    @staticmethod
    def _state(folder: Path, about: dict, code: int | None, is_alive: bool) -> tuple[JobState, str]:
        if is_alive:
            return "running", ""
        if code == 0:
            return "succeeded", ""
        if (folder / "stop").exists():
            return "stopped", ""
        if code is not None:
            return "failed", ""
        if (folder / "process.json").exists():
            return "failed", "its process ended without an exit code: it was killed, or the machine restarted"
        if time.time() - about["submitted"] < _START_S:
            return "pending", ""
        return "failed", "it was never started: its submitter was killed"


def _read_code(folder: Path) -> int | None:
    path = folder / "exit-code"
    return int(path.read_text()) if path.is_file() else None


def _identity_of(folder: Path) -> dict[str, Any]:
    """The process of a job. Signals go to its number, so a damaged file is refused."""
    identity = read_json(folder / "process.json", root=None)
    if not isinstance(identity.get("pid"), int) or not isinstance(identity.get("started"), str):
        raise VersionError(f"{folder / 'process.json'} is damaged: it names no process")
    return identity


def _is_alive(folder: Path) -> bool:
    """Whether the process of a job is alive; another one that reuses its number does not count."""
    if not (folder / "process.json").is_file():
        return False
    identity = _identity_of(folder)
    return identity["started"] != "" and _start_of(identity["pid"]) == identity["started"]


def _start_of(pid: int) -> str:
    """The start time of a process as the system reports it; empty for one that has ended."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    if shutil.which("ps") is None:
        raise RequestError(
            "neither /proc nor the program ps exists here; one of them is needed to see whether a job runs"
        )
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, started = shown.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def _show_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
