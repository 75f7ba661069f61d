"""Evidence on real images: white blood cells with hand-drawn masks, by the commands of docs/how_to/explain.md."""

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from commands import PROGRAM

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def run(place: Path, *arguments: str | Path) -> str:
    command = [PROGRAM, *arguments]
    return subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_white_blood_cells_are_found_by_their_maps(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / "wbc_masks.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    cells = tmp_path / "wbc_masks"
    run(
        tmp_path, "pack", cells, "cells", "--table", cells / "labels.csv", "--label-column", "group",
        "--group-column", "class", "--mask-column", "mask", "--split", "stratified",
    )  # fmt: skip
    run(
        tmp_path, "train", "data.dataset=cells", "run.dir=run", "training.epochs=0", "backbone.name=mobilenet_v2",
        f"backbone.weights={real_data / 'weights' / 'mobilenet_v2_imagenet.pth'}", "backbone.padding=same",
        "data.image_size=160", "data.resize_size=168", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]",
    )  # fmt: skip
    scores = json.loads(run(tmp_path, "evaluate", "run", "--protocol", "retrieval", "--json"))["metrics"]
    assert set(scores) == {f"{name}@{k}" for name in ("auc", "rel") for k in (3, 5, 10, 20, 40)} | {"ja"}
    assert min(scores[f"auc@{k}"] for k in (3, 5, 10, 20, 40)) > 0.93
    # The whole image as the map would have 0.31: the share of the cells in their images.
    assert 0.45 < scores["ja"] < 0.65
    nucleus = ["--protocol", "maps", "evaluation.mask_above=127", "--json"]
    assert json.loads(run(tmp_path, "evaluate", "run", *nucleus))["metrics"]["ja"] < scores["ja"]
    image = next(cells.glob("neutrophil/*.png"))
    found = json.loads(run(tmp_path, "explain", "run", image, "--out", "why", "--json"))
    assert (tmp_path / found["page"]).is_file()
    assert found["explanations"][0]["votes"][0]["name"] == "granulocyte"
