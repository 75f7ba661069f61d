"""Batch norm that does not see how a batch is cut."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsl_dist.errors import TrainingError
from fsl_dist.models.batch_norm import (
    FrozenBatchNorm,
    GhostBatchNorm,
    apply_batch_norm,
    deal_to_groups,
    group_sizes,
    resolve_batch_norm,
    running_statistics,
    set_ghost_groups,
    updating_running_statistics,
)


def small_network(mode="batch"):
    """Convolution, batch norm, pooling, linear, batch norm, in float64: both kinds of batch norm."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
        nn.BatchNorm1d(5),
    ).double()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    apply_batch_norm(network, mode)
    return network


def images(num, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3.0 + torch.randn(num, 2, 6, 6, generator=generator, dtype=torch.float64)


def gradients(network, outputs):
    network.zero_grad()
    (outputs.square().sum() + outputs.prod(dim=1).sum()).backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 4, 3], [12]])
def test_ghost_groups_in_one_call_equal_their_own_calls(sizes):
    ghost, plain, batch = small_network("ghost").train(), small_network().train(), images(12)
    set_ghost_groups(ghost, sizes)
    outputs = ghost(batch)
    # torch's own layers, one call a group: an oracle that shares no code with the ghost.
    apart = torch.cat([plain(part) for part in batch.split(sizes)])
    torch.testing.assert_close(outputs, apart, rtol=1e-12, atol=1e-12)
    ours, theirs = gradients(ghost, outputs), gradients(plain, apart)
    # Over all parameters together: a convolution's bias before a batch norm has no gradient but rounding.
    difference, size = (
        sum(float(gradient.square().sum()) for gradient in some) ** 0.5
        for some in ([a - b for a, b in zip(ours, theirs, strict=True)], theirs)
    )
    assert difference <= 1e-12 * size
    assert size > 1


def test_ghost_moves_running_statistics_once_by_the_groups_mean():
    ghost, batch, sizes = GhostBatchNorm(2).double().train(), images(7), [4, 3]
    ghost.sizes = tuple(sizes)
    ghost(batch)
    means = [part.mean(dim=(0, 2, 3)) for part in batch.split(sizes)]
    variances = [part.transpose(0, 1).flatten(1).var(dim=1, unbiased=True) for part in batch.split(sizes)]
    torch.testing.assert_close(ghost.running_mean, 0.1 * (4 * means[0] + 3 * means[1]) / 7)
    torch.testing.assert_close(ghost.running_var, 0.9 + 0.1 * (4 * variances[0] + 3 * variances[1]) / 7)
    assert ghost.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.3, None])
def test_ghost_without_groups_is_torchs_batch_norm(momentum):
    plain = nn.BatchNorm2d(2, momentum=momentum).double().train()
    holder = nn.Sequential(copy.deepcopy(plain))
    apply_batch_norm(holder, "ghost")
    for seed in (1, 2):
        batch = images(5, seed)
        torch.testing.assert_close(holder(batch), plain(batch), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(running_statistics(holder), running_statistics(plain))
    holder.eval(), plain.eval()
    torch.testing.assert_close(holder(batch), plain(batch), rtol=1e-12, atol=1e-12)


def test_ghost_under_autocast_keeps_its_statistics_in_float32():
    torch.manual_seed(0)
    images, plain = torch.randn(5, 4), nn.Sequential(nn.BatchNorm1d(4))
    apply_batch_norm(plain, "ghost")
    again = copy.deepcopy(plain)
    for model in (plain, again):
        set_ghost_groups(model, [3, 2])
    plain.train()(images)
    with torch.autocast("cpu", torch.bfloat16):
        again.train()(images)
    for ours, theirs in zip(running_statistics(again), running_statistics(plain), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_ghost_refuses_groups_of_another_batch_and_single_values():
    ghost = small_network("ghost").train()
    set_ghost_groups(ghost, [4, 4])
    with pytest.raises(TrainingError, match=r"groups of 8 images in all \(2 groups\), this call forwards 9"):
        ghost(images(9))
    set_ghost_groups(ghost, [7, 1])
    with pytest.raises(
        TrainingError, match="two values a channel in every group; a group of 1 with 1 a sample"
    ):
        ghost(images(8))
    ghost.eval()(images(9))  # groups matter in training only
    set_ghost_groups(ghost, None)
    ghost.train()(images(9))


def test_frozen_uses_and_keeps_running_statistics_and_trains_its_weights():
    frozen, plain, batch = small_network("frozen").train(), small_network().eval(), images(6)
    before = [statistic.clone() for statistic in running_statistics(frozen)]
    outputs = frozen(batch)
    torch.testing.assert_close(outputs, plain(batch), rtol=0, atol=0)
    grads = gradients(frozen, outputs)
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert len(grads) == 8
    torch.testing.assert_close(running_statistics(frozen), before, rtol=0, atol=0)
    torch.testing.assert_close(frozen(batch)[:2], frozen(batch[:2]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["batch", "ghost", "frozen"])
def test_a_repeated_pass_can_leave_running_statistics_alone(mode):
    network, batch = small_network(mode).train(), images(6)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with updating_running_statistics(network, False):
        without = network(batch)
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close(network(batch), without, rtol=0, atol=0)
    has_moved = not torch.equal(network[3].running_mean, state["3.running_mean"])
    assert has_moved == (mode != "frozen")
    with updating_running_statistics(network.eval(), False):  # harmless in eval mode: the statistics are used
        quiet = network(batch)
    torch.testing.assert_close(network(batch), quiet, rtol=0, atol=0)


def test_modes_change_into_each_other_and_keep_the_state():
    network = small_network("batch")
    parameters, keys = list(network.parameters()), list(network.state_dict())
    for mode, kinds in (
        ("ghost", (GhostBatchNorm, GhostBatchNorm)),
        ("frozen", (FrozenBatchNorm, FrozenBatchNorm)),
        ("ghost", (GhostBatchNorm, GhostBatchNorm)),
        ("batch", (nn.BatchNorm2d, nn.BatchNorm1d)),
    ):
        apply_batch_norm(network, mode)
        assert (type(network[0][1]), type(network[3])) == kinds
        assert all(now is then for now, then in zip(network.parameters(), parameters, strict=True))
        assert list(network.state_dict()) == keys
    torch.testing.assert_close(dict(network.state_dict()), dict(small_network().state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("apply_act", [True, False])
def test_timms_batch_norm_keeps_its_activation_in_every_mode(apply_act):
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    norm = BatchNormAct2d(2, apply_act=apply_act, act_layer=nn.LeakyReLU).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    plain, network = copy.deepcopy(norm), nn.Sequential(norm)
    keys = list(network.state_dict())
    batch = images(7) - 3.0
    apart = torch.cat([plain.train()(part) for part in batch.split([4, 3])])
    apply_batch_norm(network, "ghost")
    set_ghost_groups(network, [4, 3])
    torch.testing.assert_close(network.train()(batch), apart, rtol=1e-12, atol=1e-12)
    network.load_state_dict({f"0.{key}": value for key, value in plain.state_dict().items()})
    for mode in ("ghost", "frozen", "batch"):
        apply_batch_norm(network, mode)
        torch.testing.assert_close(network.eval()(batch), plain.eval()(batch), rtol=1e-12, atol=1e-12)
    assert type(network[0]) is BatchNormAct2d
    assert list(network.state_dict()) == keys
    assert (apart < 0).any()


def test_running_statistics_are_the_buffers_themselves():
    network = small_network("ghost")
    for statistic in running_statistics(network):
        statistic.fill_(2.0)
    assert len(running_statistics(network)) == 4
    assert network[3].running_var.tolist() == [2.0] * 5


@given(st.integers(0, 200), st.integers(2, 40))
def test_group_sizes_are_near_equal_and_never_leave_an_image_alone(num, group):
    sizes = group_sizes(num, group)
    assert sum(sizes) == num
    if num == 0:
        assert sizes == []
        return
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 1 or num == 1
    # Three images in groups of two are the one case where a group grows beyond what was asked.
    assert max(sizes) <= group or (group == 2 and num % 2)
    assert len(sizes) == -(-num // group) or group == 2


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(2, 20))
def test_deal_spreads_every_class_evenly(labels, group):
    labels = np.array(labels, dtype=np.int64)
    order = deal_to_groups(labels, group)
    assert sorted(order) == list(range(len(labels)))
    sizes = group_sizes(len(labels), group)
    dealt = np.split(labels[order], np.cumsum(sizes)[:-1]) if sizes else []
    for label in set(labels.tolist()):
        held = [int((part == label).sum()) for part in dealt]
        assert max(held) - min(held) <= 1
    assert order.dtype == np.int64
    assert order.tolist() == deal_to_groups(labels, group).tolist()


def test_auto_is_ghost_where_a_batch_is_cut():
    assert resolve_batch_norm("auto", is_global=False, is_chunked=False) == "batch"
    assert resolve_batch_norm("auto", is_global=True, is_chunked=False) == "ghost"
    assert resolve_batch_norm("auto", is_global=False, is_chunked=True) == "ghost"
    assert resolve_batch_norm("frozen", is_global=True, is_chunked=True) == "frozen"


def test_auto_is_frozen_where_the_network_starts_from_weights():
    for is_global, is_chunked in itertools.product([False, True], repeat=2):
        given = {"is_global": is_global, "is_chunked": is_chunked, "has_weights": True}
        assert resolve_batch_norm("auto", **given) == "frozen"
        assert resolve_batch_norm("ghost", **given) == "ghost"
        assert resolve_batch_norm("batch", **given) == "batch"
