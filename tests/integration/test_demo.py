"""The demo, shortened: packs, trains both minings on two Ray Train workers, indexes and scores."""

from pathlib import Path

import pytest

from cluster.commands.demo import run_demo

pytestmark = pytest.mark.integration


def test_the_demo_learns_and_says_what_to_do_next(tmp_path: Path) -> None:
    result, text = run_demo(tmp_path, 2, show=None, images_seen=3_000)
    assert result["train_images"] == 200
    for name in ("untrained", "batch", "dataset"):
        assert 0 <= result[name]["knn/acc@5"] <= 1
    # A tenth of the full demo's steps already shows it; the full one gains about fifteen points.
    assert result["dataset"]["knn/acc@5"] >= result["untrained"]["knn/acc@5"] + 0.05
    assert "deep kNN, neighbours mined in the whole data set" in text
    assert "fsl-dist pack MY_IMAGES" in text
    assert (tmp_path / "index" / "current").is_file()
