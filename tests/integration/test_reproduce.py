"""`fsl-dist reproduce`: a table's runs, trained and scored once, by the real commands."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import Cli, cli_of, fsl_dist

pytestmark = pytest.mark.integration

cli = pytest.fixture(cli_of)

SETTINGS = [
    "training.epochs=1",
    "episode.n_way=4",
    "episode.k_shot=3",
    "episode.n_query=2",
    "episode.per_epoch=4",
    "data.resize_size=16",
    "data.image_size=16",
    "evaluation.draws=2",
    "evaluation.novel_test=2",
]


@pytest.mark.slow
def test_a_table_is_run_once_and_found_again(digits: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(digits, data)
    split = fsl_dist("resplit", data, "--split", "base-novel", "--num-base", "7")
    assert split.returncode == 0, split.stderr

    def reproduce(*extra: str) -> subprocess.CompletedProcess[str]:
        return fsl_dist("reproduce", "pcn-1", "--data", data, "--out", out, "--jobs", "2", *SETTINGS, *extra)

    first = reproduce("--json")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert [row["row"] for row in report["rows"]][-2:] == ["PN", "PCN"]
    for row in report["rows"]:
        for scores in row["scores"]:
            assert 0 <= scores[0]["mean"] <= 1
            assert scores[0]["n"] == 2
    assert (out / "pcn-1-omniglot.png").stat().st_size > 1000
    assert "43.92 ± 0.40" in (out / "pcn-1-omniglot.md").read_text()

    # Run again, nothing is trained or scored: a run whose network is gone could not be.
    shutil.rmtree(out / "omniglot" / "pn" / "seed-0" / "checkpoints")
    again = reproduce("--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == report["rows"]

    # A figure of the same runs: class by class, FT-CE against PCN.
    figure = fsl_dist(
        "reproduce", "pcn-fig9", "--data", data, "--out", out, "--jobs", "2", *SETTINGS, "--json"
    )
    assert figure.returncode == 0, figure.stderr
    (picture,) = json.loads(figure.stdout)["pictures"]
    assert Path(picture).stat().st_size > 1000
    assert "fsl-dist plot comparison" in (out / "pcn-fig9-omniglot.md").read_text()

    other = reproduce("training.lr=0.5", "--json")
    assert other.returncode == 1
    assert "training.lr=0.5 differs from the run's 0.001" in other.stderr


def test_requests_that_cannot_be_served(cli: Cli, tmp_path: Path) -> None:
    for arguments, words in (
        (["pcn-17", "--data", tmp_path], "there is no table 'pcn-17'"),
        (["pcn-1", "--family", "birds", "--data", tmp_path], "birds is unknown; there are"),
        (["pcn-1"], "--data is missing"),
        (["pcn-1", "--data", tmp_path / "nowhere"], "must name a packed data set, or the unpacked folder"),
        (["pcn-1", "--data", tmp_path, "--seeds", "0"], "--seeds 0 must be at least 1"),
        (["pcn-1", "--data", tmp_path, "--jobs", "-1"], "--jobs -1 must be 0"),
    ):
        code, out, err = cli("reproduce", *arguments)
        assert (code, out) == (2, ""), err
        assert words in err
        assert len(err.strip().splitlines()) == 1
