"""The demo, shortened: packs, trains three networks on two Ray Train workers, indexes and scores."""

from pathlib import Path

import pytest

from cluster.commands.demo import run_demo

pytestmark = pytest.mark.integration


def test_the_demo_learns_and_says_what_to_do_next(tmp_path: Path) -> None:
    result, text = run_demo(tmp_path, 2, show=None, images_seen=6_000)
    assert result["train_images"] == 2000
    accuracy = {name: result[name]["knn/acc@5"] for name in ("start", "batch", "dataset", "cross_entropy")}
    # Half of the full demo's steps already show what the whole data set is worth where classes have many modes.
    assert accuracy["dataset"] >= accuracy["batch"] + 0.1 >= accuracy["start"] + 0.1
    assert "deep kNN, neighbours in the whole data set" in text
    assert "fsl-dist pack MY_IMAGES" in text
    assert (tmp_path / "index" / "current").is_file()
