"""Activation maps of pairs: the last map by CHAI Eq. 2, and an earlier layer by activation times gradient where that is too small."""

import numpy as np
import torch
from torch import nn

from fsl_dist.embedder import Embedder
from fsl_dist.evaluation.activation_maps import activation_maps
from fsl_dist.evaluation.pair_maps import _gradient_maps, map_pairs
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig


class Config:
    """What `map_pairs` reads of a run's settings."""

    class method:
        kind = "deep_knn"
        normalise = False

    class backbone:
        name, embedding_dim = "conv4", 0

    class run:
        dir = "run"


def embedder_of(side: int, name: str = "conv4", channels: int = 3) -> Embedder:
    torch.manual_seed(0)
    network = build_network(BackboneConfig(name=name, width=8), sample_shape=(channels, side, side))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.uniform_(-0.3, 0.3)
    return Embedder(network.eval(), None, device=torch.device("cpu"), batch_size=4, prefetch=1)


def images_of(side: int, num: int) -> torch.Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_a_map_of_three_rows_is_that_of_the_equation() -> None:
    embedder, images = embedder_of(48), images_of(48, 3)
    found = map_pairs(embedder, Config, images[:1], images[1:])
    g, f = embedder.map_images(images).astype(np.float64), embedder.embed_images(images).astype(np.float64)
    assert g.shape[2:] == (3, 3)
    for row, pair in enumerate(found, 1):
        weights = (f[0] - f[row]) ** 2
        np.testing.assert_allclose(pair.query, np.einsum("zij,z->ij", g[0], weights), rtol=1e-4)
        np.testing.assert_allclose(pair.result, np.einsum("zij,z->ij", g[row], weights), rtol=1e-4)
        assert pair.layer.is_last
        assert pair.layer.note == "The maps have 3 × 3 values, from the network's last feature map."


def test_activation_times_gradient_at_the_last_layer_is_the_equation() -> None:
    embedder, images = embedder_of(48), images_of(48, 2)
    f = embedder.embed_images(images)
    own, other = f[:1], f[1:]
    expected = activation_maps(embedder.map_images(images[:1]), own, other)
    last = embedder.network.backbone.get_submodule("3")
    np.testing.assert_allclose(_gradient_maps(embedder, last, images[:1], own, other), expected, rtol=1e-4)


def test_a_map_of_one_pixel_is_replaced_by_the_last_layer_with_three_rows() -> None:
    embedder, images = embedder_of(28), images_of(28, 3)
    assert embedder.map_images(images[:1]).shape[2:] == (1, 1)
    for pair in map_pairs(embedder, Config, images[:1], images[1:]):
        assert pair.layer.size == pair.query.shape == pair.result.shape == (3, 3)
        assert pair.layer.last_size == (1, 1)
        assert "only 1 × 1 places" in pair.layer.note
        assert f"earlier layer {pair.layer.name}" in pair.layer.note
        assert pair.query.min() >= 0
        assert np.ptp(pair.query) > 0


def test_an_earlier_map_shows_where_the_images_differ() -> None:
    """A square in one corner is all that distinguishes two black images: without biases, nothing far from it counts."""
    embedder = embedder_of(32)
    for module in embedder.network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
            nn.init.zeros_(module.bias)
    black = torch.zeros(1, 3, 32, 32)
    marked = black.clone()
    marked[:, :, 0:6, 26:32] = 3.0
    (pair,) = map_pairs(embedder, Config, marked, black)
    assert pair.query.shape == (4, 4)
    assert pair.query[:2, 2:].sum() > 0
    assert not pair.query[:, 0].any()
    assert not pair.query[3].any()


def test_the_same_image_has_maps_of_zeros() -> None:
    embedder, images = embedder_of(28), images_of(28, 1)
    (pair,) = map_pairs(embedder, Config, images, images.clone())
    assert pair.is_same
    assert not pair.query.any()
    assert not pair.result.any()


def test_frozen_layers_and_a_residual_network_have_earlier_maps_too() -> None:
    embedder, images = embedder_of(32, "resnet18"), images_of(32, 2)
    embedder.network.requires_grad_(False)
    (pair,) = map_pairs(embedder, Config, images[:1], images[1:])
    assert pair.layer.last_size == (1, 1)
    assert pair.layer.size == (4, 4)
    assert np.isfinite(pair.query).all()
    assert np.ptp(pair.query) > 0
    assert all(parameter.grad is None for parameter in embedder.network.parameters())
