"""`python -m benchmarks.gpu.check`: every section runs, or says why not, and its checks hold; small here, whole on a GPU's machine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
SECTIONS = ("decode", "training", "mining", "search")
WITHOUT = """
import runpy, sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {lacking}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking())
runpy.run_module("benchmarks.gpu.check", run_name="__main__", alter_sys=True)
"""


def run(out: Path, *arguments: str, lacking: tuple[str, ...] = ()) -> dict:
    """The report of one run of the script, in a process where some packages cannot be imported."""
    program = WITHOUT.format(lacking=set(lacking) or "()")
    command = [sys.executable, "-c", program, "--small", "--out", str(out), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (out / "gpu.json").is_file(), done.stderr
    report = json.loads((out / "gpu.json").read_text())
    short = [target for target in report["targets"] if not target["holds"]]
    assert done.returncode == 0, (short, done.stderr)
    assert report["targets"] == [] or not short
    assert (out / "gpu.md").read_text() in done.stdout
    return report


def test_every_section_runs_and_its_checks_hold(tmp_path) -> None:
    report = run(tmp_path)
    checked = {target["name"].split(":")[0] for target in report["targets"]}
    assert checked == set(SECTIONS)
    titles = " ".join(table["title"] for table in report["tables"])
    for word in (
        "Decoding",
        "Training steps",
        "Mining",
        "Milliseconds for",
        "What FAISS makes of a selector",
    ):
        assert word in titles
    if importlib.util.find_spec("nvidia.dali"):
        assert any("dali on cpu" in target["name"] for target in report["targets"])
    assert not any("mining by the index: not run" in note for note in report["notes"])


@pytest.mark.slow
def test_without_ray_dali_and_faiss_it_says_what_is_not_run(tmp_path) -> None:
    report = run(tmp_path, "--only", "decode", "mining", "search", lacking=("ray", "nvidia", "faiss"))
    notes = " ".join(report["notes"])
    assert "search: not run: No module named 'faiss'" in notes
    assert "mining by the index: not run: No module named 'faiss'" in notes
    assert "decode by dali on cpu: not run: data.decoder=dali: this needs nvidia.dali" in notes
    assert any("the matrix product alone" in row[0] for table in report["tables"] for row in table["rows"])


@pytest.mark.gpu
def test_the_checks_hold_on_a_gpu(tmp_path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert run(tmp_path)["config"]["device"] == "cuda:0"
