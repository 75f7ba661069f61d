"""The process of a job on every target: checks the Ray version, runs the command, logs its result as the last line."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from cluster.jobs.command import read_command
from cluster.jobs.deadlines import GRACE_S, DeadlineError, check_deadline, show_moment
from cluster.jobs.job import FINAL_MARK, RESULT_MARK
from fsl_dist.training.ray.capacity import TIMEOUT_VARIABLE
from index.base.errors import FslDistError, RequestError
from index.base.extras import require
from index.base.scratch import scratch_folder

log = logging.getLogger(__name__)

CONFIG_VARIABLE = "FSL_DIST_JOB_CONFIG"
"""environment variable with the text of a job's configuration, if it is not in a file"""

PROGRAM = ("-P", "-m", "cluster.cli")
"""Python arguments equal to `fsl-dist`, even if no script is installed; -P: a local folder `index` is not imported"""


_NODES_WITHIN_S = 600.0
"""seconds for which a job's command waits for the nodes of its cluster"""
_STOPPED_WITHIN_S = 60.0
"""seconds in which Ray ends a job on request"""


def run_job(
    root: click.Group,
    arguments: Sequence[str],
    *,
    config: Path | None,
    ray_version: str,
    deadline_s: float | None = None,
    clock: Callable[[], float] = time.time,
) -> int:
    """Run the command `arguments`, with its result on a marked line of stdout.

    A command that has the option `--resume` gets it, so that a retry resumes.

    Args:
        root: the group of all commands.
        arguments: the command line after `fsl-dist`, without `--config FILE`.
        config: the file for its --config; without one, the text in FSL_DIST_JOB_CONFIG, if any.
        ray_version: the Ray version that the submitter or the manifest expects here; empty: no check.
        deadline_s: seconds since 1970 at which the command gets SIGTERM, on which a run writes a checkpoint.
        clock: returns seconds since 1970; tests pass their own.

    Returns:
        The command's exit code.

    Raises:
        RequestError: Ray has another version here, or the command is unknown.
        DeadlineError: the deadline passed, before the command started or while it ran.
    """
    check_deadline(deadline_s, clock())
    if ray_version:
        _check_ray(ray_version)
    command = read_command(root, arguments)
    with scratch_folder("fsl-job-") as scratch:
        if config is None and (text := os.environ.get(CONFIG_VARIABLE)):
            config = scratch / "config.yaml"
            config.write_text(text, encoding="utf-8")
        first = ("--config", str(config)) if config is not None else ()
        line = command.with_options(*first, flags=("--resume", "--json"))
        log.info("fsl-dist %s", " ".join(line))
        left_s = None if deadline_s is None else deadline_s - clock()
        out, code = _run([sys.executable, *PROGRAM, *line], left_s)
    if result := _read_object(out):
        click.echo(RESULT_MARK + json.dumps(result, allow_nan=False))
    elif out.strip():
        click.echo(out, nl=False)
    return code


def end_for_good(code: int) -> None:
    """Log that a retry cannot help, and ask Ray to stop the job of this process.

    KubeRay retries a failed Ray job on a new cluster, but not a stopped one. The function returns if this process
    is not a Ray job, or if Ray does not end it: the job then fails and is retried.
    """
    click.echo(f"{FINAL_MARK}{code}")
    sys.stdout.flush()
    about = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
    name = about.get("job_submission_id")
    if name is None:
        return
    from cluster.jobs.ray import stop_own_job

    try:
        stop_own_job(name)
        time.sleep(_STOPPED_WITHIN_S)  # until its SIGTERM
    except FslDistError as error:
        log.warning("Ray does not stop this job, so it is retried: %s", error)


def _run(command: list[str], left_s: float | None) -> tuple[str, int]:
    """Run a child process that shares stderr and SIGTERM; returns its stdout and exit code (128 + signal).

    After `left_s` seconds it gets SIGTERM, and SIGKILL GRACE_S later. Raises DeadlineError then.
    """
    environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
    if environment.get("RAY_ADDRESS"):
        # `submit` has checked that the command fits: what is missing now are nodes that are on their way.
        environment.setdefault(TIMEOUT_VARIABLE, f"{_NODES_WITHIN_S:g}")
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment)
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    try:
        try:
            out, _ = child.communicate(timeout=left_s)
        except subprocess.TimeoutExpired:
            log.warning("the job's deadline has passed: the command gets %g s to end", GRACE_S)
            child.terminate()
            try:
                child.communicate(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
            raise DeadlineError(
                f"the job's deadline passed at {show_moment(time.time())} UTC while it ran"
            ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return out, child.returncode if child.returncode >= 0 else 128 - child.returncode


def _read_object(out: str) -> dict | None:
    try:
        result = json.loads(out)
    except ValueError:
        return None
    return result if isinstance(result, dict) else None


def _check_ray(wanted: str) -> None:
    require("ray")
    import ray

    if ray.__version__ != wanted:
        raise RequestError(
            f"Ray is {ray.__version__} here, but the job expects {wanted}: submit with an image, or from an environment, "
            f"that has Ray {wanted} (rayVersion of a manifest must be the version in its image)"
        )
