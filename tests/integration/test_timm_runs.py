"""Runs whose network is timm's: resumed exactly, opened, exported, and with batch norm that resuming keeps."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

import fsl_dist
from fsl_dist.config import load_run
from fsl_dist.training.checkpoint import CheckpointFolder, read_checkpoint

SETTINGS = {
    "method.kind": "cross_entropy",
    "backbone.name": "timm:test_vit",
    "backbone.pretrained": False,
    "data": {"channels": 1, "image_size": 32, "resize_size": 32, "decoder": "torchvision"},
    "training.epochs": 2,
    "training.batch_size": 24,
    "training.patience": 0,
    "training.checkpoint_steps": 1,
    "training.schedule": "milestones",  # a rate that does not follow the run's length, which the stopped run changes
    "training.warmup": 0,
}
KINDS = {
    "plain": {"backbone.layer_decay": 0.7},
    "frozen layers": {"backbone.freeze": 3},
    "lora": {"backbone.lora_rank": 2},
    "convolutional, frozen layers": {"backbone.name": "timm:test_resnet", "backbone.freeze": 2},
}


def tensors_of(run: fsl_dist.Run) -> dict[str, torch.Tensor]:
    latest = CheckpointFolder(Path(run.dir), keep=1, owner=None).latest()
    assert latest is not None
    return dict(read_checkpoint(latest, torch.device("cpu")).network)


def train(data: Path, folder: Path, settings: dict, **options: object) -> fsl_dist.Run:
    return fsl_dist.train(None, data=data, dir=folder, settings=settings, progress=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_resumes_exactly_and_its_export_embeds_as_it_does(
    digits: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "lora":
        pytest.importorskip("peft", reason="pip install 'fsl-dist[lora]'")
    settings = {**SETTINGS, **KINDS[kind]}
    whole = train(digits, tmp_path / "whole", settings)
    train(digits, tmp_path / "stopped", {**settings, "training.epochs": 1})
    resumed = train(digits, tmp_path / "stopped", settings, resume=True)
    expected = tensors_of(whole)
    torch.testing.assert_close(tensors_of(resumed), expected, rtol=0, atol=0)
    assert any("lora_" in name for name in expected) == (kind == "lora")
    assert load_run(tmp_path / "whole").data.mean == timm.get_pretrained_cfg("test_vit").mean
    # Exported, the updates are a part of the weights they update, and the file starts another run.
    whole.export(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert not any("lora" in name for name in file.keys())  # noqa: SIM118  # it is no mapping
    weights = {"backbone.weights": str(tmp_path / "model.safetensors"), "training.epochs": 0}
    name = {"backbone.name": settings["backbone.name"]}
    other = train(digits, tmp_path / "other", {**SETTINGS, **name, **weights})
    ids = np.arange(8)
    np.testing.assert_allclose(other.embed(ids), whole.embed(ids), rtol=1e-4, atol=1e-5)


def test_a_run_with_updates_is_not_taken_for_weights(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="pip install 'fsl-dist[lora]'")
    settings = {**SETTINGS, "training.epochs": 0}
    run = train(digits, tmp_path / "lora", {**settings, "backbone.lora_rank": 2})
    with pytest.raises(fsl_dist.ConfigError, match=r"backbone\.lora_rank=2.*export it as \.safetensors"):
        train(digits, tmp_path / "other", {**settings, "backbone.weights": str(run.dir)})


def test_batch_norm_of_weights_is_frozen_and_stays_so_when_a_run_is_resumed(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**SETTINGS, "backbone.name": "timm:test_resnet"}
    start = train(digits, tmp_path / "start", settings)
    assert load_run(tmp_path / "start").backbone.batch_norm == "auto"
    given = tensors_of(start)
    assert "data.mean" not in caplog.text
    from_start = {**settings, "training.epochs": 1, "backbone.weights": str(start.dir)}
    settings["data"] = from_start["data"] = {**SETTINGS["data"], "mean": [0.25]}
    run = train(digits, tmp_path / "run", from_start)
    assert (
        "data.mean=[0.25] differs from the [0.5] of the weights of backbone.name=timm:test_res" in caplog.text
    )
    assert load_run(tmp_path / "run").backbone.batch_norm == "frozen"
    # The weights may be gone by then; the checkpoint has what became of them.
    resumed = train(digits, tmp_path / "run", settings, resume=True)
    for tensors in (tensors_of(run), tensors_of(resumed)):
        statistics = [name for name in tensors if "running_" in name]
        assert statistics
        assert all(torch.equal(tensors[name], given[name]) for name in statistics)
        assert not torch.equal(tensors["classifier.weight"], given["classifier.weight"])
