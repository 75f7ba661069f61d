"""PN against PCN on Omniglot's alphabets by the commands of the README: the ordering of PCN's Table 1."""

import json
import subprocess
from pathlib import Path

import pytest
from commands import PROGRAM

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3600)]

EXPERIMENTS = Path(__file__).parents[2] / "fsl_dist" / "experiments"


def run(place: Path, *arguments: str | Path) -> str:
    command = [PROGRAM, *arguments]
    return subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_pcn_beats_pn_by_three_points(omniglot: Path, tmp_path: Path) -> None:
    run(
        tmp_path, "pack", omniglot, "data/omniglot", "--table", omniglot / "labels.csv", "--path-column", "file",
        "--label-column", "alphabet", "--group-column", "class", "--split", "base-novel", "--num-base", "35",
    )  # fmt: skip
    scores = {}
    for name in ("pn", "pcn"):
        run(tmp_path, "train", "--config", EXPERIMENTS / "omniglot" / f"{name}.yaml", "workers.num=2")
        report = json.loads(run(tmp_path, "evaluate", f"runs/omniglot-{name}", "--json"))
        scores[name] = report["metrics"]["mca/base_novel"]["mean"]
    assert scores["pcn"] >= scores["pn"] + 0.03
