"""Which parameters the optimizer moves, and how fast."""

import math

import pytest
import torch

from fsl_dist.config import load_config
from fsl_dist.errors import ConfigError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.optimizer import build_optimizer, clip_gradient, set_learning_rate


def small_network(**fields):
    torch.manual_seed(0)
    config = BackboneConfig(name="mlp", hidden=(5, 4), **fields)
    return build_network(config, sample_shape=(3,), num_classes=2 if "embedding_dim" in fields else 0)


@pytest.mark.parametrize("lr_factor", [1.0, 0.1, 3.0])
def test_groups_hold_every_parameter_once(lr_factor):
    network = small_network(embedding_dim=3)
    optimizer = build_optimizer(network, TrainingConfig(), lr_factor=lr_factor)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in network.parameters())
    # Matrices, and vectors that weight decay is not for, at each factor.
    assert len(optimizer.param_groups) == (2 if lr_factor == 1 else 4)
    for group in optimizer.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["decays"]}


def test_the_backbone_moves_by_its_share():
    """One step of plain SGD is -lr·gradient, in each group with its own lr, before and after a milestone."""
    network = small_network(embedding_dim=3).double()
    settings = TrainingConfig(optimizer="sgd", lr=0.5, momentum=0.0, weight_decay=0.0)
    optimizer = build_optimizer(network, settings, lr_factor=0.25)
    for lr in (0.5, 0.05):
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        optimizer.zero_grad()
        network(torch.randn(4, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        for name, parameter in network.named_parameters():
            rate = lr * 0.25 if name.startswith("backbone.") else lr
            torch.testing.assert_close(
                parameter.detach(), before[name] - rate * parameter.grad, rtol=1e-12, atol=1e-12
            )
        set_learning_rate(optimizer, 0.05)


def test_a_restored_optimizer_keeps_its_factors():
    first = build_optimizer(small_network(embedding_dim=3), TrainingConfig(lr=0.1), lr_factor=0.5)
    set_learning_rate(first, 0.01)
    second = build_optimizer(small_network(embedding_dim=3), TrainingConfig(lr=0.1), lr_factor=0.5)
    second.load_state_dict(first.state_dict())
    assert [group["lr"] for group in second.param_groups] == [0.01, 0.01, 0.005, 0.005]
    set_learning_rate(second, 0.2)
    assert [group["lr"] for group in second.param_groups] == [0.2, 0.2, 0.1, 0.1]


def test_a_backbone_alone_learns_at_its_share():
    optimizer = build_optimizer(small_network(), TrainingConfig(lr=0.1), lr_factor=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


def test_a_factor_of_zero_leaves_the_backbone_alone():
    network = small_network(embedding_dim=3)
    optimizer = build_optimizer(network, TrainingConfig(), lr_factor=0.0)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fresh = [*network.head.parameters(), *network.classifier.parameters()]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in fresh}
    assert len(held) == len(fresh)
    network(torch.randn(4, 3)).sum().backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in fresh)
    with pytest.raises(
        ConfigError, match=r"backbone\.lr_factor=0 or backbone\.freeze leaves nothing to train.*embedding_dim"
    ):
        build_optimizer(small_network(), TrainingConfig(), lr_factor=0.0)


def test_a_map_head_is_new_and_its_backbone_transferred():
    torch.manual_seed(0)
    config = BackboneConfig(name="conv4", width=4, map_head=5)
    network = build_network(config, sample_shape=(1, 16, 16))
    optimizer = build_optimizer(network, TrainingConfig(lr=0.01), lr_factor=1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.01 if name.startswith("map_head.") else 1e-5)
    assert len(rates) == len(list(network.parameters()))
    build_optimizer(network, TrainingConfig(), lr_factor=0.0)
    network(torch.randn(2, 1, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.map_head.parameters())
    assert all(parameter.grad is None for parameter in network.backbone.parameters())


def test_adamw_is_its_formula_and_spares_biases_and_norms():
    """Loshchilov & Hutter 2019, Algorithm 2, in plain loops: two steps, heads ten times as fast."""
    torch.manual_seed(0)
    config = BackboneConfig(name="conv4", width=3, embedding_dim=2)
    network = build_network(config, sample_shape=(1, 16, 16)).double()
    settings = TrainingConfig(lr=0.01, weight_decay=0.3)
    optimizer = build_optimizer(network, settings, head_lr_factor=10.0)
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = {name: p.detach().clone() for name, p in network.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in (1, 2):
        optimizer.zero_grad()
        network(torch.randn(4, 1, 16, 16, dtype=torch.float64)).square().sum().backward()
        for name, parameter in network.named_parameters():
            gradient = parameter.grad
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            lr = 0.1 if name.startswith("head.") else 0.01
            is_matrix = name.endswith("weight") and parameter.ndim > 1
            shrunk = expected[name] * (1 - lr * 0.3 * is_matrix)
            scale = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            expected[name] = shrunk - lr * first[name] / (1 - 0.9**step) / scale
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_coupled_decay_is_for_every_parameter(name):
    optimizer = build_optimizer(
        small_network(embedding_dim=3), TrainingConfig(optimizer=name, weight_decay=0.2), lr_factor=0.5
    )
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.2}
    assert TrainingConfig(optimizer=name).decay == 1e-5
    assert TrainingConfig().decay == 0.05


def test_heads_are_faster_where_the_backbone_starts_from_weights():
    assert load_config(None, []).head_lr_factor == 1.0
    assert load_config(None, ["backbone.pretrained=true"]).head_lr_factor == 10.0
    assert load_config(None, ["backbone.weights=file.pth"]).head_lr_factor == 10.0
    named = load_config(None, ["backbone.pretrained=true", "training.head_lr_factor=3"])
    assert named.head_lr_factor == 3.0


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1e6])
def test_a_long_gradient_is_scaled_to_the_norm(clip_norm):
    network = small_network(embedding_dim=3).double()
    network(torch.randn(4, 3, dtype=torch.float64)).square().sum().mul(1e3).backward()
    before = {name: p.grad.clone() for name, p in network.named_parameters()}
    length = math.sqrt(sum(float(value) ** 2 for g in before.values() for value in g.reshape(-1)))
    assert length > 0.5
    assert float(clip_gradient(network, clip_norm)) == pytest.approx(length, rel=1e-12)
    scale = clip_norm / length if 0 < clip_norm < length else 1.0
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name] * scale, rtol=1e-5, atol=0.0)
