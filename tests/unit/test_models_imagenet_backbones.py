"""torchvision's and timm's networks as backbones, against the originals they were cut from."""

import urllib.error

import pytest
import timm
import torch
from torch import nn
from torchvision import models
from torchvision.ops import StochasticDepth

from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.batch_norm import apply_batch_norm, running_statistics, set_ghost_groups
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.weights import load_weights
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.optimizer import build_optimizer

# Networks of up to 140 million weights: half a minute.
pytestmark = pytest.mark.heavy

# name: (pixels a side, feature_dim, shape of the maps). Where an architecture has a smallest size, it is that one.
NETWORKS = {
    "alexnet": (63, 4096, (256, 3, 3)),
    "convnext_base": (32, 1024, (1024, 1, 1)),
    "densenet121": (29, 1024, (1024, 1, 1)),
    "efficientnet_b3": (33, 1536, (1536, 2, 2)),
    "resnet50_v2": (33, 2048, (2048, 2, 2)),
    "se_resnet50": (33, 2048, (2048, 2, 2)),
    "vgg19": (32, 4096, (512, 2, 2)),
    "vit_b_16": (32, 768, None),
}
WITH_BATCH_NORM = ("densenet121", "efficientnet_b3", "resnet50_v2", "se_resnet50")


def build(name, channels=3, **fields):
    size = NETWORKS[name][0]
    torch.manual_seed(0)
    network = build_network(BackboneConfig(name=name, **fields), sample_shape=(channels, size, size))
    for module in network.modules():
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            module.p = 0.0  # two forward passes are compared
    return network


def original_of(name, state):
    """The library's own network with a classifier, its parameters those of `state`, and its features as a function.

    The classifier is drawn; returns the state_dict of the whole, and images → features in eval mode.
    """
    with torch.device("meta"):
        if name in ("resnet50_v2", "se_resnet50"):
            original = timm.create_model({"resnet50_v2": "resnetv2_50", "se_resnet50": "seresnet50"}[name])
        else:
            sized = {"image_size": NETWORKS[name][0]} if name == "vit_b_16" else {}
            original = getattr(models, name)(**sized)
    whole = {
        key: state[key].clone() if key in state else torch.randn(value.shape)
        for key, value in original.state_dict().items()
    }
    assert set(state) <= set(whole)
    original.load_state_dict(whole, assign=True)
    original.eval()
    if isinstance(original, (timm.models.ResNet, timm.models.ResNetV2)):
        return whole, lambda x: original.forward_head(original.forward_features(x), pre_logits=True)
    match name:
        case "alexnet":
            original.classifier = original.classifier[:3]
        case "convnext_base" | "vgg19":
            original.classifier[-1] = nn.Identity()
        case "vit_b_16":
            original.heads = nn.Identity()
        case _:
            original.classifier = nn.Identity()
    return whole, original


def assert_alike(actual, expected, tolerance=1e-5):
    scale = float(expected.detach().abs().max())
    assert scale > 0
    assert float((actual - expected).detach().abs().max()) <= tolerance * scale


@pytest.fixture(scope="module", params=NETWORKS)
def built(request):
    """(name, network, images [4, 3, size, size]); each network is built once, and its tests run one after another."""
    size = NETWORKS[request.param][0]
    torch.manual_seed(1)
    return request.param, build(request.param), torch.randn(4, 3, size, size)


@torch.no_grad()
def test_features_are_the_originals_and_its_state_dict_loads(built):
    name, network, images = built
    network.eval()
    statistics = running_statistics(network)
    for mean, variance in zip(statistics[::2], statistics[1::2], strict=True):
        mean.normal_(std=0.1)
        variance.uniform_(0.5, 1.5)
    whole, features = original_of(name, network.backbone.state_dict())
    expected = features(images)
    for tensor in network.backbone.state_dict().values():
        tensor.zero_()
    load_weights(network.backbone, whole, BackboneConfig(name=name), source="the test")
    actual = network(images)
    assert_alike(actual, expected)
    assert actual.shape == (4, NETWORKS[name][1])
    assert actual.dtype == torch.float32
    assert network.feature_dim == NETWORKS[name][1]
    torch.testing.assert_close(network(images), actual, rtol=0, atol=0)


@torch.no_grad()
def test_maps_before_pooling(built):
    name, network, images = built
    shape = NETWORKS[name][2]
    if shape is None:
        with pytest.raises(ConfigError, match="has no feature maps, like mlp, vit_b_16"):
            network.feature_maps(images)
        return
    maps = network.eval().feature_maps(images)
    assert maps.shape == (4, *shape)
    if (
        shape[0] == network.feature_dim and name != "convnext_base"
    ):  # whose features are normalised after pooling
        assert_alike(network(images), maps.mean(dim=(2, 3)))


@torch.no_grad()
def test_features_keep_full_precision_under_autocast(built):
    name, network, images = built
    if name != "vit_b_16":  # the mean of one bf16 pixel is one
        images = images.repeat(1, 1, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.eval()(images)
    assert features.dtype == torch.float32
    assert not torch.equal(features, features.bfloat16().float())


def test_every_parameter_learns(built):
    _, network, images = built
    network.train()
    parameters = dict(network.named_parameters())
    (network(images) * torch.randn(4, network.feature_dim)).sum().backward()
    assert [name for name, parameter in parameters.items() if not parameter.grad.any()] == []
    steepest = {name: int(parameter.grad.abs().argmax()) for name, parameter in parameters.items()}
    before = {
        name: parameter.detach().flatten()[steepest[name]].item() for name, parameter in parameters.items()
    }
    for parameter in parameters.values():  # ConvNeXt's layer scale of 1e-6 leaves less than float32 resolves
        parameter.grad /= parameter.grad.abs().max()
    torch.optim.SGD(parameters.values(), 0.01).step()
    for name, parameter in parameters.items():
        assert parameter.detach().flatten()[steepest[name]].item() != before[name], name
    network.zero_grad()


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
@torch.no_grad()
def test_ghost_groups_are_forwards_of_their_own_and_frozen_is_eval(name):
    network, size = build(name), NETWORKS[name][0]
    images = torch.randn(7, 3, size, size)
    # The libraries' own layers are the oracle: one call a group, and eval mode with the statistics these calls left.
    apart = torch.cat([network.train()(part) for part in images.split([4, 3])])
    evaluated = network.eval()(images)
    apply_batch_norm(network, "frozen")
    assert_alike(network.train()(images), evaluated)
    apply_batch_norm(network, "ghost")
    assert_alike(network.eval()(images), evaluated)
    set_ghost_groups(network, [4, 3])
    assert_alike(network.train()(images), apart, 1e-3)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)  # the smaller ones
@torch.no_grad()
def test_grey_images_are_colour_images_of_three_equal_channels(name):
    colour, grey, size = build(name).eval(), build(name, channels=1).eval(), NETWORKS[name][0]
    images = torch.randn(2, 1, size, size)
    expected = colour(images.expand(-1, 3, -1, -1))
    assert_alike(grey(images), expected)
    for tensor in grey.backbone.state_dict().values():
        tensor.zero_()
    load_weights(grey.backbone, colour.backbone.state_dict(), BackboneConfig(name=name), source="the test")
    assert_alike(grey(images), expected)


def test_densenet_files_with_torchvisions_old_names_load():
    network = build("densenet121")
    state = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    old = {
        key.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.").replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in state.items()
    }  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    for tensor in network.backbone.state_dict().values():
        tensor.zero_()
    load_weights(network.backbone, old, BackboneConfig(name="densenet121"), source="the test")
    torch.testing.assert_close(dict(network.backbone.state_dict()), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("alexnet", (3, 62, 63), "63 px or more; the samples are 62×63 px"),
        ("convnext_base", (3, 31, 32), "32 px or more"),
        ("densenet121", (3, 28, 28), "29 px or more"),
        ("vgg19", (3, 31, 31), "32 px or more"),
        ("vit_b_16", (3, 32, 48), r"patches of 16 px; the samples are 32×48 px .*data\.image_size"),
        ("vit_b_16", (3, 40, 40), "the samples are 40×40 px"),
        ("vit_b_16", (2, 32, 32), "images of 1 or 3 channels"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused(name, shape, words):
    with pytest.raises(ConfigError, match=words):
        build_network(BackboneConfig(name=name), sample_shape=shape)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50_v2", r"timm's weights of resnet50_v2.*of timm/resnetv2_50\.a1h_in1k from.*backbone\.weights=PATH"),
        ("densenet121", r"torchvision's weights of densenet121.*densenet121-.*\.pth elsewhere"),
    ],
)  # fmt: skip
def test_pretrained_offline_says_what_to_do(name, words, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match=words) as refused:
        build(name, pretrained=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "num_maps"), [("alexnet", 256), ("densenet121", 1024)])
def test_the_map_head_is_a_convolution_with_relu_whose_means_are_the_embedding(name, num_maps):
    network, size = build(name, map_head=20), NETWORKS[name][0] + 64
    plain = build(name)
    images = torch.randn(2, 3, size, size)
    plain.backbone.load_state_dict(network.backbone.state_dict(), strict=False)
    maps = plain.eval().feature_maps(images)
    assert maps.shape[1] == num_maps
    head = network.map_head.conv
    assert head.weight.shape == (20, num_maps, 3, 3)
    expected = nn.functional.conv2d(maps, head.weight, head.bias, padding=1).clamp(min=0)
    found = network.eval().feature_maps(images)
    assert_alike(found, expected)
    assert found.shape[2:] == maps.shape[2:]
    embeddings = network(images)
    assert embeddings.shape == (2, network.embedding_dim) == (2, 20)
    assert_alike(embeddings, expected.mean(dim=(2, 3)))
    embeddings.square().sum().backward()
    # What comes after the maps is not there, so every parameter learns.
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert network.feature_maps(images).dtype == torch.float32


def test_baseline_ft_has_fc6_as_embedding_and_learns_at_three_rates():
    """CHAI section 2.3: 0.01 for fc8, 0.001 for fc7 and fc6, 0.00001 for earlier layers."""
    torch.manual_seed(0)
    config = BackboneConfig(name="alexnet", fc7=True, lr_factor=1e-3, linear_lr_factor=100.0)
    network = build_network(config, sample_shape=(3, 63, 63), num_classes=3).eval()
    images = torch.randn(2, 3, 63, 63)
    fc6 = network.embed(images)
    assert fc6.shape == (2, 4096)
    fc7 = network.fc7.linear
    expected = network.classifier(nn.functional.linear(fc6, fc7.weight, fc7.bias).clamp(min=0))
    assert_alike(network(images), expected)
    assert_alike(network.classify(fc6), expected)
    settings = TrainingConfig(optimizer="sgd", lr=0.01)
    optimizer = build_optimizer(network, settings, lr_factor=1e-3, linear_lr_factor=100.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for parameter_name, parameter in network.named_parameters():
        is_linear = parameter_name.startswith(("backbone.classifier.", "fc7."))
        expected_rate = 1e-3 if is_linear else 0.01 if parameter_name.startswith("classifier.") else 1e-5
        assert rate[id(parameter)] == pytest.approx(expected_rate), parameter_name
    assert len(rate) == len(list(network.parameters()))


def test_fc7_starts_from_alexnets_own_file(tmp_path):
    torch.manual_seed(0)
    original = models.alexnet()
    torch.save(original.state_dict(), tmp_path / "alexnet.pth")
    config = BackboneConfig(name="alexnet", fc7=True, weights=str(tmp_path / "alexnet.pth"))
    network = build_network(config, sample_shape=(3, 63, 63), num_classes=2)
    images = torch.randn(1, 3, 63, 63)
    with torch.no_grad():
        hidden = original.eval().classifier[:6](original.avgpool(original.features(images)).flatten(1))
        assert_alike(network.eval().fc7(network.embed(images)), hidden)
    torch.save({f"backbone.{k}": v for k, v in network.backbone.state_dict().items()}, tmp_path / "fc6.pth")
    with pytest.raises(RequestError, match=r"fc6\.pth has no fc7 of 4096 by 4096.*backbone\.fc7=false"):
        build_network(
            BackboneConfig(name="alexnet", fc7=True, weights=str(tmp_path / "fc6.pth")),
            sample_shape=(3, 63, 63),
            num_classes=2,
        )
