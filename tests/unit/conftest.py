"""What unit tests share beyond tests/conftest.py."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _start_no_processes() -> Iterator[None]:
    """A pack uses as many processes as it is asked for, and one where it would use a core each: a start costs six small packs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("index.base.processes._count_cores", lambda: 1)
        yield


@pytest.fixture(autouse=True, scope="module")
def _skip_waiting_for_the_disk() -> Iterator[None]:
    """Files are not forced to the disk, which took half of the time where small indexes are built: no unit test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
