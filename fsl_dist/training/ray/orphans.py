"""Processes of a Ray whose command was killed: some of its agents may outlive it."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from index.base.scratch import is_held

RAY_SCRATCH = "fsl-ray-"
"""start of the name of a scratch folder that a Ray of this project works in"""
_PROGRAMS = ("raylet", "gcs_server")
_SCRIPTS = ("/ray/dashboard/", "/ray/_private/")
"""folders of the programs that Ray starts in Python; they get titles such as ray::DashboardAgent a moment later"""


def end_orphans() -> list[int]:
    """End processes of Ray that work in a scratch folder of this project whose command no longer lives.

    Only processes of this user count, and only those with an open file below `TMPDIR/fsl-ray-…`: those of other Rays
    are not touched. Where there is no /proc, nothing is ended.

    Returns:
        The ids of the processes.
    """
    ended = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or belongs to another user
            if process.stat().st_uid != os.getuid() or not _is_of_ray(process):
                continue
            folders = set(_scratch_folders(process))
            if folders and not any(is_held(folder) for folder in folders):
                os.kill(int(process.name), signal.SIGKILL)
                ended.append(int(process.name))
    return ended


def _is_of_ray(process: Path) -> bool:
    """Whether it is a program of Ray, rather than one that uses Ray and may still have open what is long over."""
    program, *arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if program.startswith("ray::") or Path(program).name in _PROGRAMS:
        return True
    return any(script in one and one.endswith(".py") for one in arguments for script in _SCRIPTS)


def _scratch_folders(process: Path) -> Iterator[Path]:
    """Scratch folders in which a process has files open; a folder that was removed meanwhile is still named."""
    start = f"{tempfile.gettempdir()}/{RAY_SCRATCH}"
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            target = os.readlink(descriptor)
            if target.startswith(start) and "/r/session_" in target:
                yield Path(start + target.removeprefix(start).partition("/")[0])
