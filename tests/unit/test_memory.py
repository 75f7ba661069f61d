"""Freed memory that stays with the process: whether its pages are cleared anew, and who says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration  # processes that import torch

PROGRAM = """
import resource, sys
import torch
from fsl_dist.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000).add_(1.0)  # 48 MB: 11,719 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
print(keep_freed_memory(), first, faults(), faults())
"""


def run(**environment):
    own = {
        name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, *faults = done.stdout.split()
    return kept == "True", list(map(int, faults))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no mallopt")
def test_pages_are_cleared_once():
    kept, (before, _, after) = run()
    assert kept
    assert after < before / 20


def test_the_environment_has_the_last_word():
    assert not run(MALLOC_TRIM_THRESHOLD_="131072")[0]
