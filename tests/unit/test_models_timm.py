"""Networks of timm as backbones, against timm's own forward pass."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fsl_dist.config import load_config, parse_config, render_config
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.batch_norm import (
    apply_batch_norm,
    running_statistics,
    set_ghost_groups,
)
from fsl_dist.models.config import BackboneConfig

# name: (pixels a side, feature_dim, shape of the maps)
NETWORKS = {
    "resnet10t": (64, 512, (512, 2, 2)),
    "convnextv2_atto": (64, 320, (320, 2, 2)),
    "mobilenetv3_small_050": (64, 1024, (288, 2, 2)),
    "efficientvit_b0": (64, 1280, (128, 2, 2)),
    "regnetx_002": (64, 368, (368, 2, 2)),
    "tf_efficientnet_b0": (65, 1280, (1280, 3, 3)),
    "swin_tiny_patch4_window7_224": (64, 768, (768, 2, 2)),
    "vit_tiny_patch16_224": (64, 192, None),
    "vit_small_patch14_dinov2": (56, 384, None),
    "vit_small_patch16_dinov3": (48, 384, None),
    "levit_128s": (64, 384, None),
}
WITH_BATCH_NORM = ["resnet10t", "mobilenetv3_small_050", "efficientvit_b0", "regnetx_002"]


def build(name, channels=3, **fields):
    size = fields.pop("size", SIZES.get(name, (64,))[0])
    torch.manual_seed(0)
    return build_network(
        BackboneConfig(name=f"timm:{name}", **fields), sample_shape=(channels, size, size), num_classes=0
    )


def assert_alike(actual, expected, tolerance=1e-5):
    scale = float(expected.detach().abs().max())
    assert scale > 0
    assert float((actual - expected).detach().abs().max()) <= tolerance * scale


# 86 million weights; timm has no smaller one that pools by attention.
LARGE = {"vit_base_patch16_siglip_224": (32, 768, None)}
SIZES = NETWORKS | LARGE


@pytest.fixture(
    scope="module", params=[*NETWORKS, *(pytest.param(name, marks=pytest.mark.heavy) for name in LARGE)]
)
def built(request):
    """(name, network, images [2, 3, size, size]); each network is built once."""
    torch.manual_seed(1)
    size = SIZES[request.param][0]
    return request.param, build(request.param), torch.randn(2, 3, size, size)


def test_features_are_those_that_timms_classifier_reads(built):
    name, network, images = built
    size, feature_dim, maps_shape = SIZES[name]
    sizes = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    original = timm.create_model(name, **sizes).eval()
    loaded = original.load_state_dict(network.backbone.model.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert {key.partition(".")[0] for key in loaded.missing_keys} <= {"classifier", "fc", "head", "head_dist"}
    network.eval()
    with torch.no_grad():
        features = network(images)
        expected = original.forward_head(original.forward_features(images), pre_logits=True)
    assert features.shape == (2, network.feature_dim) == (2, feature_dim)
    if name == "levit_128s":  # a norm is a part of its classifier
        expected = features
    assert_alike(features, expected)
    if maps_shape is None:
        with pytest.raises(ConfigError, match="has no feature maps"):
            network.feature_maps(images)
    else:
        assert network.feature_maps(images).shape == (2, *maps_shape)


def test_every_parameter_learns_and_features_keep_full_precision(built):
    _, network, images = built
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(images)
    assert features.dtype == torch.float32
    (features * torch.randn_like(features)).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    network.zero_grad()


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
@torch.no_grad()
def test_ghost_groups_are_forwards_of_their_own_and_frozen_is_eval(name):
    network, size = build(name), SIZES[name][0]
    kinds = {type(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    images = torch.randn(5, 3, size, size)
    apart = torch.cat([network.train()(part) for part in images.split([3, 2])])
    evaluated = network.eval()(images)
    apply_batch_norm(network, "frozen")
    assert_alike(network.train()(images), evaluated)
    apply_batch_norm(network, "ghost")
    set_ghost_groups(network, [3, 2])
    assert_alike(network.train()(images), apart, 1e-3)
    apply_batch_norm(network, "batch")
    assert {type(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == kinds
    assert running_statistics(network)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "efficientvit_b0"])
@torch.no_grad()
def test_weights_for_colours_serve_grey_images(name, tmp_path):
    size = SIZES[name][0]
    colour, grey_images = build(name).eval(), torch.randn(2, 1, size, size)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in colour.backbone.model.state_dict().items()}, path)
    grey = build(name, channels=1, weights=str(path)).eval()
    assert_alike(grey(grey_images), colour(grey_images.expand(-1, 3, -1, -1)))


@torch.no_grad()
def test_weights_of_timms_own_file_and_of_a_run_are_loaded(tmp_path):
    torch.manual_seed(5)
    original = timm.create_model("mobilenetv3_small_050").eval()
    torch.save(original.state_dict(), tmp_path / "whole.pth")
    images = torch.randn(2, 3, 64, 64)
    expected = original.forward_head(original.forward_features(images), pre_logits=True)
    network = build("mobilenetv3_small_050", weights=str(tmp_path / "whole.pth")).eval()
    assert_alike(network(images), expected)
    torch.save({"network": network.state_dict()}, tmp_path / "run.pth")
    again = build("mobilenetv3_small_050", weights=str(tmp_path / "run.pth")).eval()
    torch.testing.assert_close(again(images), network(images), rtol=0, atol=0)
    with pytest.raises(RequestError) as refused:
        build("resnet10t", weights=str(tmp_path / "whole.pth"))
    assert "does not fit backbone.name=timm:resnet10t: missing conv1" in str(refused.value)
    assert "\n" not in str(refused.value)


@torch.no_grad()
def test_position_embeddings_are_resampled_to_the_runs_images(tmp_path):
    torch.manual_seed(0)
    original = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=0)
    torch.save(original.state_dict(), tmp_path / "vit.pth")
    network = build("vit_tiny_patch16_224", size=64, weights=str(tmp_path / "vit.pth"))
    expected = timm.layers.resample_abs_pos_embed(original.pos_embed, new_size=[4, 4])
    torch.testing.assert_close(network.backbone.model.pos_embed, expected)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])
def test_the_map_head_stands_on_the_maps_and_what_follows_them_is_left_out(name, tmp_path):
    size, _, (num_maps, *_) = SIZES[name]
    plain = build(name).eval()
    torch.save(plain.backbone.model.state_dict(), tmp_path / "plain.pth")
    network = build(name, map_head=7, weights=str(tmp_path / "plain.pth")).eval()
    images = torch.randn(2, 3, size, size)
    head = network.map_head.conv
    assert head.weight.shape == (7, num_maps, 3, 3)
    maps = plain.feature_maps(images)
    expected = nn.functional.conv2d(maps, head.weight, head.bias, padding=1).clamp(min=0).mean(dim=(2, 3))
    embeddings = network(images)
    assert_alike(embeddings, expected)
    embeddings.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("resnet99", {}, r"timm:resnet99: timm \S+ has no network 'resnet99'; the nearest are timm:resnet\d+"),
        ("resnet18.a9_in1k", {}, r"no weights 'a9_in1k' of resnet18; the nearest are timm:resnet18\.a\d_in1k"),
        ("vit_small_patch16_dinov3", {"size": 50}, r"does not support images of 50×50 px .*divisible by.*image_size=256"),
        ("densenet121", {"size": 8}, r"does not support images of 8×8 px and 3 channels: .*image_size=224"),
        ("vit_tiny_patch16_224", {"map_head": 8}, r"map_head=8 needs feature maps"),
        ("mixer_s32_224", {"pretrained": True}, r"pretrained=true: timm \S+ has no weights of mixer_s32_224"),
    ],
)  # fmt: skip
def test_what_timm_does_not_have_is_refused_in_one_line(name, fields, words):
    with pytest.raises(ConfigError, match=words) as refused:
        build(name, **fields)
    assert "\n" not in str(refused.value)


def test_pretrained_offline_names_the_file_and_its_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    words = r"model\.safetensors of timm/resnet10t\.c3_in1k .*backbone\.weights=PATH"
    with pytest.raises(RequestError, match=words) as refused:
        build("resnet10t", pretrained=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (518, 518)),
        (["data.image_size=224"], (224, 224)),
        (["data.resize_size=280"], (280, 280)),
        (["data.image_size=196", "data.resize_size=224"], (196, 224)),
    ],
)
def test_input_settings_are_the_networks_where_none_are_given(given, expected):
    config = load_config(
        None, ["backbone.name=timm:vit_small_patch14_dinov2", "data.mean=[0.1,0.2,0.3]", *given]
    )
    assert (config.data.image_size, config.data.resize_size) == expected
    assert config.data.mean == (0.1, 0.2, 0.3)
    assert config.data.std == (0.229, 0.224, 0.225)
    assert parse_config(render_config(config), [], "again") == config


def test_input_settings_of_other_networks():
    vit = load_config(None, ["backbone.name=timm:vit_tiny_patch16_224"]).data
    assert vit.mean == vit.std == (0.5, 0.5, 0.5)
    assert (vit.interpolation, vit.resize) == ("bicubic", "shorter")
    assert (vit.image_size, vit.resize_size) == (224, 248)  # 224 / 0.9, as timm rounds it
    shipped = load_config(None, ["backbone.name=resnet18"]).data
    assert (shipped.mean[0], shipped.image_size, shipped.resize_size) == (0.485, 224, 256)
    assert shipped.interpolation == "bilinear"
    with pytest.raises(ConfigError, match="timm:resnet18"):
        load_config(None, ["backbone.name=timm:resnet81"])
