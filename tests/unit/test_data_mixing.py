"""Mixup and CutMix: pixels and shares by their definition, draws of pairs, and cuts of a step between pairs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fsl_dist.config import load_config
from fsl_dist.data.augmentation.mixing import draw_mixing
from fsl_dist.errors import ConfigError
from fsl_dist.methods.method import Batch
from fsl_dist.training.step import deal_pieces


def draw(ids, mixup=0.0, cutmix=0.0, epoch=0):
    return draw_mixing(np.asarray(ids), seed=0, epoch=epoch, mixup=mixup, cutmix=cutmix)


def test_mixup_blends_the_images_of_a_pair():
    images = torch.rand(5, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    mixing = draw([3, 1, 4, 1, 5], mixup=1.0)
    found = mixing.apply(images, np.arange(5))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert mixing.partner.tolist() == [1, 0, 3, 2, 4]
    for row, partner in enumerate(mixing.partner):
        share = float(mixing.share[row])
        expected = (1 - share) * images[row].double() + share * images[partner].double()
        assert (found[row] - expected).abs().max() < 1e-6
    assert mixing.share[0] == mixing.share[1] != mixing.share[2]
    assert torch.equal(found[4], images[4])


def test_cutmix_pastes_a_box_and_its_share_is_exact():
    """A box's edges fall between pixels: each pixel is mixed by the part of it that is inside, sampled here."""
    size, fine = 6, 200
    images = torch.stack([torch.zeros(1, size, size), torch.ones(1, size, size)])
    for ids in ([0, 1], [2, 3], [4, 5], [6, 7]):
        mixing = draw(ids, cutmix=1.0)
        found = mixing.apply(images, np.arange(2))
        top, left, bottom, right = mixing.box[0].astype(float)
        at = (np.arange(size * fine) + 0.5) / (size * fine)
        inside = np.outer((at >= top) & (at < bottom), (at >= left) & (at < right))
        expected = inside.reshape(size, fine, size, fine).mean(axis=(1, 3))
        assert np.abs(found[0, 0].numpy() - expected).max() < 0.02
        assert np.abs(found[1, 0].numpy() - (1 - expected)).max() < 0.02
        assert found[0].mean().item() == pytest.approx(mixing.share[0], abs=1e-6)


def test_shares_are_beta_distributed():
    ids = np.arange(8000)
    for alpha in (0.2, 1.0):
        assert stats.kstest(1 - draw(ids, mixup=alpha).share[::2], stats.beta(alpha, alpha).cdf).pvalue > 0.01
    mixing = draw(ids, cutmix=1.0)
    top, left, bottom, right = mixing.box[::2].T
    is_whole = (top > 0) & (left > 0) & (bottom < 1) & (right < 1)
    assert np.allclose((bottom - top)[is_whole], (right - left)[is_whole], atol=1e-6)
    assert mixing.share.mean() < 0.5, "boxes are cut off at the edges"
    # Yun et al.: a box of area 1 - λ about a uniform centre, cut off.
    rng = np.random.default_rng(0)
    half, centre = np.sqrt(rng.uniform(size=40000))[:, None] / 2, rng.uniform(size=(40000, 2))
    expected = np.prod((centre + half).clip(0, 1) - (centre - half).clip(0, 1), axis=1)
    assert stats.ks_2samp(mixing.share[::2], expected).pvalue > 0.01


def test_with_both_each_pair_gets_either():
    mixing = draw(np.arange(4000), mixup=0.2, cutmix=1.0)
    is_cut = (mixing.box != (0, 0, 1, 1)).any(axis=1)
    assert np.array_equal(is_cut[::2], is_cut[1::2])
    assert is_cut.mean() == pytest.approx(0.5, abs=0.04)
    assert (mixing.strength[is_cut] == 1).all()


def test_a_pair_is_mixed_by_its_ids_and_epoch():
    ids = np.array([7, 3, 9, 9, 7, 4])
    mixing = draw(ids, mixup=1.0, cutmix=1.0)
    alone = draw(ids[2:4], mixup=1.0, cutmix=1.0)
    assert np.array_equal(mixing.box[2:4], alone.box)
    assert np.array_equal(mixing.strength[2:4], alone.strength)
    assert mixing.share[0] != mixing.share[4], "the same image with another one"
    assert not np.array_equal(mixing.share, draw(ids, mixup=1.0, cutmix=1.0, epoch=1).share)


def test_features_are_blended_and_a_lone_image_stays():
    features = torch.rand(4, 7)
    mixing = draw([0, 1, 2, 3], mixup=1.0)
    found = mixing.apply(features, np.arange(4))
    share = torch.from_numpy(mixing.share)[:, None]
    torch.testing.assert_close(found, (1 - share) * features + share * features[[1, 0, 3, 2]])
    assert torch.equal(mixing.apply(features[2:3], np.array([2])), features[2:3])


@given(
    num=st.integers(1, 60), world_size=st.integers(1, 4), group=st.integers(2, 20),
    chunk_size=st.integers(0, 30), is_ghost=st.booleans(), is_global=st.booleans(),
)  # fmt: skip
def test_no_cut_divides_a_pair(num, world_size, group, chunk_size, is_ghost, is_global):
    mixing = draw(np.arange(num), mixup=1.0)
    batch = Batch(np.arange(num), np.arange(num) % 3, mixing=mixing)
    images = torch.rand(num, 2)
    expected = mixing.apply(images, np.arange(num))
    seen, group_of = [], {}
    for rank in range(world_size):
        pieces = deal_pieces(
            [batch], is_global=is_global, rank=rank, world_size=world_size,
            is_ghost=is_ghost, ghost_group=group, chunk_size=chunk_size,
        )  # fmt: skip
        for piece in pieces:
            for chunk in [] if piece.is_empty else piece.chunks:
                positions = piece.positions[chunk.rows]
                assert torch.equal(mixing.apply(images[positions], positions), expected[positions])
                edges = np.append(0, np.cumsum(chunk.ghost_sizes))
                for first, last in pairwise(edges.tolist()):
                    assert not is_ghost or last - first <= max(group, 6)  # three pairs
                    group_of |= dict.fromkeys(positions[first:last].tolist(), (rank, len(seen), first))
                seen += positions.tolist()
    assert sorted(seen) == list(range(num))
    if is_ghost:
        assert all(group_of[n] == group_of[n ^ 1] for n in range(num - num % 2))


def test_a_divided_pair_is_noticed():
    with pytest.raises(AssertionError, match="a pair was divided"):
        draw([0, 1, 2, 3], mixup=1.0).apply(torch.rand(2, 3), np.array([1, 2]))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["method.kind=deep_knn", "method.mixup=0.2"], "method.mixup belongs to method.kind=cross_entropy"),
        (["method.kind=cross_entropy", "method.mixup=-1"], "method.mixup=-1 must be at least 0"),
        (
            ["method.kind=cross_entropy", "method.cutmix=1", "data.features=f.npy"],
            r"method.cutmix=1.0 needs images; this run trains on data.features='f.npy'",
        ),
    ],
)
def test_mixing_that_cannot_be_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        load_config(None, settings)
