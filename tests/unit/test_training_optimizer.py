"""Which parameters the optimizer moves, and how fast."""

import pytest
import torch

from fsl_dist.errors import ConfigError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.optimizer import build_optimizer, set_learning_rate


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
    assert len(optimizer.param_groups) == (1 if lr_factor == 1 else 2)


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
    assert [group["lr"] for group in second.param_groups] == [0.01, 0.005]
    set_learning_rate(second, 0.2)
    assert [group["lr"] for group in second.param_groups] == [0.2, 0.1]


def test_a_backbone_alone_learns_at_its_share():
    optimizer = build_optimizer(small_network(), TrainingConfig(lr=0.1), lr_factor=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]


def test_a_factor_of_zero_leaves_the_backbone_alone():
    network = small_network(embedding_dim=3)
    optimizer = build_optimizer(network, TrainingConfig(), lr_factor=0.0)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fresh = [*network.head.parameters(), *network.classifier.parameters()]
    assert [id(parameter) for parameter in held] == [id(parameter) for parameter in fresh]
    network(torch.randn(4, 3)).sum().backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in fresh)
    with pytest.raises(ConfigError, match=r"backbone\.lr_factor=0 leaves nothing to train.*embedding_dim"):
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
