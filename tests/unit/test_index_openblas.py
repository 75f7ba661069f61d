"""The processor that OpenBLAS is told of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from index.openblas import name_processor

AVX512 = "avx512f avx512cd avx512bw avx512dq avx512vl"


@pytest.mark.parametrize(
    ("vendor", "flags", "core"),
    [
        ("GenuineIntel", f"fpu avx2 fma {AVX512} amx_tile", "SKYLAKEX"),
        ("GenuineIntel", "fpu avx2 fma avx512f avx512cd", "HASWELL"),
        ("GenuineIntel", "fpu sse4_2", None),
        ("AuthenticAMD", f"fpu avx2 fma {AVX512}", None),
    ],
)
def test_it_goes_by_what_the_processor_can_do(tmp_path, monkeypatch, vendor, flags, core):
    description = tmp_path / "cpuinfo"
    description.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    name_processor(description)
    assert os.environ.get("OPENBLAS_CORETYPE") == core
    monkeypatch.setenv("OPENBLAS_CORETYPE", "ZEN")
    name_processor(description)
    assert os.environ["OPENBLAS_CORETYPE"] == "ZEN"


def test_without_a_description_nothing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    name_processor(tmp_path / "nowhere")
    assert "OPENBLAS_CORETYPE" not in os.environ


def flags_here() -> set[str]:
    description = Path("/proc/cpuinfo")
    text = description.read_text() if description.is_file() else ""
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return set(lines[0].split()) if lines and "GenuineIntel" in text else set()


@pytest.mark.skipif(not flags_here() >= {"avx2", "fma"}, reason="this is no Intel processor with AVX2")
def test_faiss_computes_for_it():
    program = (
        "import index, faiss\nfrom threadpoolctl import threadpool_info\n"
        "print(*[found['architecture'] for found in threadpool_info() if 'faiss' in found['filepath'] "
        "and found['internal_api'] == 'openblas'])"
    )
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("SkylakeX", "Haswell")
