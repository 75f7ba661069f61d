"""Switches of a process: each does what it says, the environment has the last word, and importing switches nothing."""

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from index.runtime import faiss, flushing_denormals, matrix_product_from, name_processor

AVX512 = "avx512f avx512cd avx512bw avx512dq avx512vl"
FAULTS = """
import resource, sys
import torch
from index.runtime import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000).add_(1.0)  # 48 MB: 11,719 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
print(keep_freed_memory(), first, faults(), faults())
"""
IMPORTS = """
import importlib, os, pkgutil, sys
before = dict(os.environ)
import cluster, fsl_dist, index, tune
for package in {packages}:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from index.runtime import keep_freed_memory
changed = [name for name in os.environ.keys() | before.keys() if os.environ.get(name) != before.get(name)]
torch = sys.modules.get("torch")
flushes = torch is not None and float(torch.tensor([1e-30]) * 1e-10) == 0
print(*changed)
print("faiss" in sys.modules, keep_freed_memory.cache_info().currsize, flushes)
"""
SET_BY_OTHERS = {"KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK", "TORCHINDUCTOR_CACHE_DIR", "RAY_CLIENT_MODE"}
"""environment variables that scikit-learn, torch and Ray set when they are imported"""


def run(program: str, *arguments: str, without: tuple[str, ...] = (), **environment: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "packages", ["[index]", pytest.param("[cluster, fsl_dist, index, tune]", marks=pytest.mark.integration)]
)
def test_importing_switches_nothing(packages: str) -> None:
    said = run(IMPORTS.format(packages=packages), without=("OPENBLAS_CORETYPE", *SET_BY_OTHERS))
    changed, rest = said.splitlines()
    assert set(changed.split()) <= SET_BY_OTHERS
    assert rest == "False 0 False"


def keep_memory(**environment: str) -> tuple[bool, list[int]]:
    kept, *faults = run(FAULTS, without=("MALLOC", "GLIBC_TUNABLES"), **environment).split()
    return kept == "True", list(map(int, faults))


@pytest.mark.integration  # a process that imports torch
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no mallopt")
def test_pages_are_cleared_once() -> None:
    kept, (before, _, after) = keep_memory()
    assert kept
    assert after < before / 20


@pytest.mark.integration  # a process that imports torch
def test_the_environment_has_the_last_word_on_memory() -> None:
    assert not keep_memory(MALLOC_TRIM_THRESHOLD_="131072")[0]


@pytest.mark.parametrize(
    ("vendor", "flags", "core"),
    [
        ("GenuineIntel", f"fpu avx2 fma {AVX512} amx_tile", "SKYLAKEX"),
        ("GenuineIntel", "fpu avx2 fma avx512f avx512cd", "HASWELL"),
        ("GenuineIntel", "fpu sse4_2", None),
        ("AuthenticAMD", f"fpu avx2 fma {AVX512}", None),
    ],
)
def test_the_processor_is_named_by_what_it_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, core: str | None
) -> None:
    description = tmp_path / "cpuinfo"
    description.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    name_processor(description)
    assert os.environ.get("OPENBLAS_CORETYPE") == core
    monkeypatch.setenv("OPENBLAS_CORETYPE", "ZEN")
    name_processor(description)
    assert os.environ["OPENBLAS_CORETYPE"] == "ZEN"


def test_without_a_description_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    name_processor(tmp_path / "nowhere")
    assert "OPENBLAS_CORETYPE" not in os.environ


def flags_here() -> set[str]:
    description = Path("/proc/cpuinfo")
    text = description.read_text() if description.is_file() else ""
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return set(lines[0].split()) if lines and "GenuineIntel" in text else set()


SEARCH = """
import os, sys
from pathlib import Path
import numpy as np
from threadpoolctl import threadpool_info
from index import runtime
from index.search import open_index
from index.writing.build import build
if len(sys.argv) > 2:
    runtime.name_processor = lambda: os.environ.update(OPENBLAS_CORETYPE=sys.argv[2])
vectors = np.eye(8, dtype=np.float32)
build(Path(sys.argv[1]), vectors, np.zeros(8, dtype=np.int64))
assert open_index(Path(sys.argv[1])).search(vectors[:2], 1).ids.tolist() == [[0], [1]]
print(*[f["architecture"] for f in threadpool_info() if "faiss" in f["filepath"] and f["internal_api"] == "openblas"])
"""


@pytest.mark.skipif(not flags_here() >= {"avx2", "fma"}, reason="this is no Intel processor with AVX2")
def test_faiss_computes_for_it_in_a_process_that_only_searches(tmp_path: Path) -> None:
    said = run(SEARCH, str(tmp_path / "index"), without=("OPENBLAS_CORETYPE",))
    assert said.strip() in ("SkylakeX", "Haswell")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this is no processor of Prescott's kind")
def test_the_processor_is_named_before_faiss_is_loaded(tmp_path: Path) -> None:
    said = run(SEARCH, str(tmp_path / "index"), "PRESCOTT", without=("OPENBLAS_CORETYPE",))
    assert said.strip() == "Prescott"


def product_of_small_numbers() -> float:
    return float((torch.tensor([1e-30]) * torch.tensor([1e-10])).item())


def test_denormals_are_zero_inside_and_numbers_again_after_it() -> None:
    assert product_of_small_numbers() > 0
    with flushing_denormals(torch.set_flush_denormal):
        assert product_of_small_numbers() == 0
        assert float((torch.tensor([1e-30]) * 10).item()) > 0
    assert product_of_small_numbers() > 0


def test_threads_that_need_another_rule_for_products_wait_for_each_other() -> None:
    values: list[int] = []
    started = threading.Event()

    def search(num_queries: int) -> None:
        started.set()
        with matrix_product_from(4, num_queries):
            values.append(faiss.cvar.distance_compute_blas_threshold)

    before = faiss.cvar.distance_compute_blas_threshold
    other = threading.Thread(target=search, args=(3,))
    with matrix_product_from(4, 100):
        search(7)  # the same rule: runs concurrently
        other.start()
        started.wait()
        other.join(0.05)
        assert other.is_alive()
        assert values == [1]
    other.join(10)
    assert values == [1, 1 << 30]
    assert faiss.cvar.distance_compute_blas_threshold == before
