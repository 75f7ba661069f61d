"""What a job runs, wherever it runs: check the Ray that is there, run the command, write its result as the log's last line."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cluster.jobs.command import read_command
from cluster.jobs.job import RESULT_MARK
from index.base.errors import RequestError
from index.base.extras import require
from index.base.scratch import scratch_folder

log = logging.getLogger(__name__)

CONFIG_VARIABLE = "FSL_DIST_JOB_CONFIG"
"""environment variable with the text of a job's configuration, where no file carries it"""

PROGRAM = ("-P", "-m", "cluster.cli")
"""arguments of Python that are `fsl-dist`, also where no script is installed; -P: a folder `index` at hand is not imported"""


def run_job(root: click.Group, arguments: Sequence[str], *, config: Path | None, ray_version: str) -> int:
    """Run the command `arguments` with its result on a marked line of stdout; returns the command's exit code.

    config: the file given to it as --config; without one, the text in FSL_DIST_JOB_CONFIG, if any. ray_version: what the
    submitter or manifest took this machine's Ray to be. A command that was cut off goes on: verbs with --resume get it.
    Raises RequestError where the Ray here is another one, or the command is none.
    """
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
        out, code = _run([sys.executable, *PROGRAM, *line])
    if result := _read_object(out):
        click.echo(RESULT_MARK + json.dumps(result, allow_nan=False))
    elif out.strip():
        click.echo(out, nl=False)
    return code


def _run(command: list[str]) -> tuple[str, int]:
    """Run a child whose stderr is ours and that gets our SIGTERM; returns its stdout and its exit code, 128 + signal."""
    environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment)
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    try:
        out, _ = child.communicate()
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
            f"the Ray here is {ray.__version__} and the job expects {wanted}: submit with an image, or from an environment, "
            f"that has Ray {wanted} (rayVersion of a manifest must be its image's Ray)"
        )
