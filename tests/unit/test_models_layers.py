"""The layers of a backbone: their order, freezing the first of them, and learning rates that fall towards the input."""

import pytest
import torch
from torch import nn

from fsl_dist.errors import ConfigError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.batch_norm import apply_batch_norm
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.layers import layer_numbers
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.optimizer import build_optimizer, group_parameters

SMALL = {
    "conv4": (1, 28),
    "resnet18": (3, 32),
    "mobilenet_v2": (3, 32),
    "timm:test_resnet": (3, 64),
    "timm:test_vit": (3, 64),
}
# Stem, or convolutions; then residual or transformer blocks. MobileNetV2 ends in one more convolution.
NUM_LAYERS = {
    "conv4": 4,
    "resnet18": 1 + 8,
    "mobilenet_v2": 1 + 17 + 1,
    "timm:test_resnet": 1 + 4,
    "timm:test_vit": 1 + 6,
}


def build(name, **fields):
    channels, size = SMALL[name]
    torch.manual_seed(0)
    shape = (channels, size, size)
    return build_network(
        BackboneConfig(name=name, **fields), sample_shape=shape, num_classes=fields.pop("classes", 3)
    )


@pytest.mark.parametrize("name", SMALL)
def test_layers_are_numbered_from_the_input_and_a_layer_depends_on_those_before_it_only(name):
    """The definition: what a layer gives does not change with the parameters of later ones."""
    backbone = build(name).backbone.eval()
    numbers = layer_numbers(backbone)
    assert set(numbers) == {key for key, _ in backbone.named_parameters()}
    assert set(numbers.values()) == set(range(NUM_LAYERS[name]))
    owner = {key.rpartition(".")[0]: number for key, number in numbers.items()}
    seen: list[int] = []
    hooks = [
        module.register_forward_hook(lambda *_, key=key: seen.append(owner[key]))
        for key, module in backbone.named_modules()
        if key in owner and not list(module.children())
    ]
    with torch.no_grad():
        backbone(torch.randn(1, SMALL[name][0], SMALL[name][1], SMALL[name][1]))
    for hook in hooks:
        hook.remove()
    assert seen == sorted(seen)
    assert len(set(seen)) == NUM_LAYERS[name]


def test_vit_of_torchvision_has_its_blocks_as_layers():
    from torchvision.models import VisionTransformer

    network = VisionTransformer(32, 16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16)
    network.heads = nn.Identity()
    numbers = layer_numbers(network)
    assert numbers["class_token"] == numbers["conv_proj.weight"] == numbers["encoder.pos_embedding"] == 0
    assert numbers["encoder.layers.encoder_layer_2.mlp.0.weight"] == numbers["encoder.ln.weight"] == 3
    assert set(numbers.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", SMALL)
def test_frozen_layers_stay_and_the_others_learn(name):
    num_layers, (channels, size) = NUM_LAYERS[name], SMALL[name]
    network = build(name, freeze=num_layers - 2).train()
    apply_batch_norm(network, "ghost")  # as a run does, after the network is built
    numbers = layer_numbers(network.backbone)
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    optimizer = build_optimizer(network, TrainingConfig(optimizer="sgd", lr=0.1))
    network(torch.randn(4, channels, size, size)).square().sum().backward()
    optimizer.step()
    owner = {key.rpartition(".")[0]: number for key, number in numbers.items()}
    for key, value in network.backbone.state_dict().items():
        number = numbers.get(key, owner.get(key.rpartition(".")[0]))
        if number < num_layers - 2:
            assert torch.equal(value, before[key]), key
        elif key in numbers:
            assert not torch.equal(value, before[key]) or not before[key].any(), key


def test_the_whole_backbone_can_be_frozen_and_no_more():
    network = build("resnet18", freeze=-1).train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert network.classifier.weight.grad is not None
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(not p.requires_grad for p in build("resnet18", freeze=9).backbone.parameters())
    with pytest.raises(ConfigError, match=r"backbone\.freeze=10 is more than the 9 layers of this backbone"):
        build("resnet18", freeze=10)


@pytest.mark.parametrize("name", ["conv4", "resnet18", "timm:test_vit"])
def test_the_rate_of_a_layer_falls_towards_the_input(name):
    network = build(name)
    numbers, num_layers = layer_numbers(network.backbone), NUM_LAYERS[name]
    groups = group_parameters(network, lr_factor=0.5, layer_decay=0.8)
    factor = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    assert len(factor) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    for key, parameter in network.backbone.named_parameters():
        assert factor[id(parameter)] == pytest.approx(0.5 * 0.8 ** (num_layers - numbers[key])), key
    assert {factor[id(p)] for p in network.classifier.parameters()} == {1.0}
    assert groups[0]["lr_factor"] == 1.0


def test_weight_decay_spares_biases_norms_and_position_embeddings():
    network = build("timm:test_vit")
    spared = {id(p) for group in group_parameters(network) if not group["decays"] for p in group["params"]}
    for key, parameter in network.named_parameters():
        is_spared = parameter.ndim < 2 or key.endswith(("pos_embed", "cls_token", "reg_token"))
        assert (id(parameter) in spared) == is_spared, key


def test_the_momentum_of_batch_norm_is_set():
    for mode in ("batch", "ghost"):
        network = build("conv4", batch_norm=mode, batch_norm_momentum=0.01).train()
        images = torch.randn(5, 1, 28, 28)
        network(images)
        convolution, norm = network.backbone[0][0], network.backbone[0][1]
        expected = 0.01 * convolution(images).mean(dim=(0, 2, 3))
        torch.testing.assert_close(norm.running_mean, expected)
