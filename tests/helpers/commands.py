"""The commands of `fsl-dist` in tests: as processes of their own, and in this process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import cluster.cli
from index.base.errors import FslDistError

PROGRAM = Path(sys.executable).with_name("fsl-dist")
"""the installed command"""

GREY_16_PX = [
    "data.channels=1",
    "data.resize=exact",
    "data.resize_size=16",
    "data.image_size=16",
    "data.mean=[0.5]",
    "data.std=[0.5]",
]
"""settings of runs on the digits"""

Cli = Callable[..., tuple[int, str, str]]


def fsl_dist(*arguments: str | Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run `fsl-dist ARGUMENTS` as a process."""
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=timeout)


def call(command: click.Command, *arguments: object) -> Result:
    """Run a command of the command line in this process; an error is the result's `exception`."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def refusal(command: click.Command, *arguments: object, exit_code: int = 2) -> str:
    """The one line with which a command refuses a request (2), or stops at what it finds (1)."""
    error = call(command, *arguments).exception
    assert isinstance(error, FslDistError), error
    assert error.exit_code == exit_code, error
    assert "\n" not in str(error)
    return str(error)


def cli_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """A function that runs `fsl-dist ARGUMENTS` in this process; it returns exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fsl-dist", *map(str, arguments)])
        capfd.readouterr()
        try:
            cluster.cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run
