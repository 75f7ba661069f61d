"""Sound folders of every kind, made once: a data set, a run, indexes, a sweep."""

import subprocess
import sys
from pathlib import Path

import pytest
from damage_worker import WORKER, environment


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds them, by name."""
    base = tmp_path_factory.mktemp("faults") / "base"
    subprocess.run(
        [sys.executable, str(WORKER), "make", str(base)], check=True, env=environment(), capture_output=True
    )
    return base
