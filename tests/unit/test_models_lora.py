"""LoRA: the features are W·x + (alpha/r)·B·A·x, and nothing else of the backbone learns."""

import copy

import pytest
import torch

from fsl_dist.errors import ConfigError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.lora import merge_lora
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.optimizer import build_optimizer

pytest.importorskip("peft")


def build(name="timm:test_vit", **fields):
    torch.manual_seed(0)
    return build_network(BackboneConfig(name=name, **fields), sample_shape=(3, 64, 64), num_classes=3)


@torch.no_grad()
def test_updates_start_at_zero_and_are_scaled_by_alpha_over_rank():
    plain, network, images = (
        build().eval(),
        build(lora_rank=2, lora_alpha=6.0).eval(),
        torch.randn(2, 3, 64, 64),
    )
    torch.testing.assert_close(network.embed(images), plain.embed(images))
    layer = network.backbone.model.blocks[1].attn.qkv
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape == (2, layer.in_features)
    assert not up.any()
    up.normal_()
    rows = torch.randn(5, layer.in_features)
    weight = layer.base_layer.weight + 3.0 * up @ down
    torch.testing.assert_close(layer(rows), torch.nn.functional.linear(rows, weight, layer.base_layer.bias))


def test_only_updates_and_heads_learn():
    network = build(lora_rank=2).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = build_optimizer(network, TrainingConfig(optimizer="sgd", lr=0.1))
    for _ in range(2):  # A learns once B is not 0
        optimizer.zero_grad()
        network(torch.randn(4, 3, 64, 64)).square().sum().backward()
        optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    updates = {key for key in before if "lora_" in key}
    assert changed == updates | {"classifier.weight", "classifier.bias"}
    layers = {key.partition(".lora_")[0].rpartition("blocks.")[2] for key in updates}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert layers == {f"{block}.{part}" for block in range(6) for part in parts}


@torch.no_grad()
def test_a_state_dict_is_loaded_by_the_same_settings_and_merging_gives_a_plain_network():
    network = build(lora_rank=3).eval()
    for key, parameter in network.named_parameters():
        if "lora_B" in key:
            parameter.normal_(std=0.1)
    images = torch.randn(2, 3, 64, 64)
    expected = network.embed(images)
    again = build(lora_rank=3).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again.embed(images), expected, rtol=0, atol=0)
    merged = copy.deepcopy(network)
    merge_lora(merged)
    plain = build().eval()
    assert (plain.embed(images) - expected).abs().max() > 1e-3
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(plain.embed(images), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_loaded_before_the_updates_are_added(tmp_path):
    source = build().eval()
    torch.save(source.backbone.model.state_dict(), tmp_path / "vit.pth")
    torch.manual_seed(7)
    config = BackboneConfig(name="timm:test_vit", weights=str(tmp_path / "vit.pth"), lora_rank=2)
    network = build_network(config, sample_shape=(3, 64, 64)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.embed(images), source.embed(images))


@pytest.mark.parametrize("name", ["timm:beit_base_patch16_224", "timm:swin_tiny_patch4_window7_224"])
@pytest.mark.heavy
def test_every_update_has_a_gradient_where_attention_uses_weights_by_themselves(name):
    """BEiT multiplies by qkv.weight without calling the layer: an update of the layer would never learn."""
    network = build(name, lora_rank=1).train()
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    ups = {key: parameter for key, parameter in network.named_parameters() if "lora_B" in key}
    assert len(ups) > 20
    assert [key for key, parameter in ups.items() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["conv4", "resnet18", "timm:test_convnext"])
def test_networks_without_attention_are_refused(name):
    with pytest.raises(ConfigError, match=rf"lora_rank=4 .*backbone\.name={name} has none") as refused:
        build(name, lora_rank=4)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_rank": 4, "freeze": 2}, r"backbone\.lora_rank=4 and backbone\.freeze=2"),
        ({"lora_alpha": 8.0}, r"backbone\.lora_alpha=8 .*lora_rank, which is 0"),
        ({"lora_rank": -1}, r"backbone\.lora_rank=-1 must be at least 0"),
        ({"layer_decay": 0.0}, r"backbone\.layer_decay=0"),
        ({"layer_decay": 1.5}, r"backbone\.layer_decay=1\.5"),
        ({"freeze": -2}, r"backbone\.freeze=-2"),
        ({"batch_norm_momentum": 0.0}, r"backbone\.batch_norm_momentum=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        BackboneConfig(name="timm:test_vit", **fields)
