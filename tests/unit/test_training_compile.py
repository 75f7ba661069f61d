"""`training.compile`: the same numbers from a compiled network, and one line where nothing can compile it."""

import shutil
from pathlib import Path

import pytest

from fsl_dist.config import load_config
from fsl_dist.errors import RequestError
from fsl_dist.training.launch import train_run
from fsl_dist.training.runlog import read_metrics


def settings(digits: Path, run: Path, *more: str):
    return load_config(
        None,
        [
            f"data.dataset={digits}", f"run.dir={run}", "backbone.name=conv4", "data.channels=1", "data.mean=[0.5]",
            "data.std=[0.5]", "data.resize_size=16", "data.image_size=16", "episode.n_way=3", "episode.k_shot=2",
            "episode.n_query=2", "episode.per_epoch=3", "method.kind=pcn", "method.clusters=1", "training.epochs=1", "training.patience=0",
            *more,
        ],
    )  # fmt: skip


def test_without_a_compiler_it_says_so_before_the_first_step(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RequestError, match=r"training\.compile=true needs a C\+\+ compiler .*'no-such-compiler'"
    ):
        train_run(settings(digits, tmp_path / "run", "training.compile=true"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing can compile here: there is no g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_network_has_the_same_losses(digits, tmp_path):
    losses = {}
    for compiles in ("false", "true"):
        run = tmp_path / compiles
        train_run(settings(digits, run, f"training.compile={compiles}"))
        losses[compiles] = [line["train/loss"] for line in read_metrics(run)]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
