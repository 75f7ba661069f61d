"""The backbones: shapes, a step of training, the weights they start from."""

import os
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.batch_norm import FrozenBatchNorm, GhostBatchNorm
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.embedding import Network

SHAPES = [
    ("conv4", (1, 28, 28), 64),
    ("conv4", (4, 37, 50), 64),
    ("mlp", (20,), 128),
    ("mobilenet_v2", (3, 32, 32), 1280),
    ("resnet18", (1, 32, 32), 512),
    ("resnet50", (3, 48, 48), 2048),
]


def network_of(name, shape, **rest):
    torch.manual_seed(0)
    config_fields = {key: rest.pop(key) for key in list(rest) if key in BackboneConfig.__slots__}
    return build_network(BackboneConfig(name=name, **config_fields), sample_shape=shape, **rest)


def assert_alike(actual, expected):
    """Equal up to rounding against the largest value: a random MobileNetV2 embeds to 1e-9."""
    scale = float(expected.detach().abs().max())
    assert scale > 0
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "shape", "feature_dim"), SHAPES)
def test_embeds_and_learns(name, shape, feature_dim):
    network = network_of(name, shape, num_classes=3).train()
    samples, targets = torch.randn(4, *shape), torch.tensor([0, 1, 2, 0])
    assert network.feature_dim == network.embedding_dim == feature_dim
    loss = torch.nn.functional.cross_entropy(network(samples), targets)
    loss.backward()
    steepness = sum(float(parameter.grad.square().sum()) for parameter in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            # To first order this step lowers the loss by 0.01, however steep the random network is.
            parameter -= 0.01 / steepness * parameter.grad
        lowered = torch.nn.functional.cross_entropy(network(samples), targets)
    assert 0.005 < loss.item() - lowered.item() < 0.015
    embeddings = network.eval().embed(samples)
    assert embeddings.shape == (4, feature_dim)
    assert embeddings.dtype == torch.float32


def test_head_classifier_and_unit_length():
    network = network_of("conv4", (1, 28, 28), width=8, embedding_dim=5, num_classes=3, normalise=True).eval()
    samples = torch.randn(6, 1, 28, 28)
    embeddings = network.embed(samples)
    assert (network.feature_dim, network.embedding_dim) == (8, 5)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))
    assert (embeddings < 0).any()
    torch.testing.assert_close(network(samples), network.classifier(embeddings.clamp_min(0) * 5**0.5))
    torch.testing.assert_close(network.classify(embeddings), network(samples))
    headless = network_of("conv4", (1, 28, 28), width=8, num_classes=3).eval()
    torch.testing.assert_close(headless(samples), headless.classifier(headless.embed(samples)))
    plain = network_of("conv4", (1, 28, 28), width=8, embedding_dim=5).eval()
    torch.testing.assert_close(plain(samples), plain.embed(samples), rtol=0, atol=0)
    torch.testing.assert_close(torch.nn.functional.normalize(plain(samples)), embeddings)


def test_a_zero_embedding_has_no_exploding_gradient():
    network = Network(torch.nn.Identity(), 3, normalise=True)
    rows = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], requires_grad=True)
    embeddings = network(rows)
    assert embeddings.tolist() == [[0, 0, 0], [pytest.approx(0.6), 0, pytest.approx(0.8)]]
    embeddings.sum().backward()
    assert rows.grad.abs().max() <= 1.0


def test_conv4_at_28_px_is_its_flattened_map():
    network = network_of("conv4", (1, 28, 28), width=8).eval()
    samples = torch.randn(3, 1, 28, 28)
    flat = network.backbone[:-1](samples).flatten(1)
    assert flat.shape == (3, 8)
    torch.testing.assert_close(network(samples), flat)


def test_mlp_ends_in_a_plain_layer():
    network = network_of("mlp", (6,), hidden=(7, 4))
    kinds = [type(module).__name__ for module in network.backbone]
    assert kinds == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "FullPrecisionLinear"]
    assert network(torch.randn(3, 6)).shape == (3, 4)
    assert (network(torch.randn(3, 6)) < 0).any()


@pytest.mark.parametrize("embedding_dim", [0, 5])
def test_the_last_layer_keeps_full_precision_under_autocast(embedding_dim):
    network = network_of("mlp", (6,), hidden=(16, 8), embedding_dim=embedding_dim).eval()
    samples = torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = network(samples)
        hidden = network.backbone[1](samples)
    assert hidden.dtype == torch.bfloat16
    assert embeddings.dtype == torch.float32
    assert not torch.equal(embeddings, embeddings.bfloat16().float())


def test_pooling_runs_in_full_precision_under_autocast():
    network = network_of("conv4", (1, 64, 64), width=8).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = network(torch.randn(2, 1, 64, 64))
    assert embeddings.dtype == torch.float32
    assert not torch.equal(embeddings, embeddings.bfloat16().float())


def test_float64_networks_stay_float64():
    network = network_of("conv4", (1, 28, 28), width=4, embedding_dim=3, num_classes=2).double()
    assert network(torch.randn(2, 1, 28, 28, dtype=torch.float64)).dtype == torch.float64


def test_channels_last_gives_the_same_embeddings():
    network = network_of("mobilenet_v2", (3, 32, 32)).eval()
    samples = torch.randn(2, 3, 32, 32)
    expected = network(samples)
    network.to(memory_format=torch.channels_last)
    actual = network(samples.contiguous(memory_format=torch.channels_last))
    assert_alike(actual, expected)


def test_grey_is_the_colour_network_shown_grey_three_times(tmp_path):
    colour, grey = (network_of("mobilenet_v2", (channels, 32, 32)).eval() for channels in (3, 1))
    samples = torch.randn(2, 1, 32, 32)
    assert_alike(grey(samples), colour(samples.expand(-1, 3, -1, -1)))
    path = tmp_path / "colour.pth"
    torch.save(colour.backbone.state_dict(), path)
    torch.manual_seed(1)
    loaded = build_network(BackboneConfig(name="mobilenet_v2", weights=str(path)), sample_shape=(1, 32, 32))
    assert_alike(loaded.eval()(samples), grey(samples))


# Which side an odd padding goes to depends on how a size halves: as 224, as 97 and 130 px, and always odd.
@pytest.mark.parametrize("size", [(64, 64), (65, 66), (33, 33)])
def test_same_padding_is_that_of_timm(size):
    from timm import create_model

    ours = network_of("mobilenet_v2", (3, *size), padding="same").eval()
    symmetric = network_of("mobilenet_v2", (3, *size)).eval()
    theirs = create_model("mobilenetv2_100", pad_type="same", num_classes=0).eval()
    own = ours.backbone.state_dict()
    assert list(own) == list(symmetric.backbone.state_dict())
    for name, value in own.items():
        if name.endswith("running_var"):
            value.fill_(0.3)  # random features fade to 1e-9 otherwise
    symmetric.backbone.load_state_dict(own)
    # The same tensors in the same order, under other names; shapes are checked on loading.
    theirs.load_state_dict(dict(zip(theirs.state_dict(), own.values(), strict=True)))
    # float64: fifty layers of such features blow float32's rounding up.
    samples = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected, features, others = (net.double()(samples) for net in (theirs, ours, symmetric))
    scale = expected.abs().max()
    assert (features - expected).abs().max() <= 1e-5 * scale
    # Odd sizes at every stride are the one case where both paddings are one.
    assert ((others - expected).abs().max() > 1e-3 * scale) == (size != (33, 33))


@pytest.mark.parametrize("mode", ["auto", "batch", "frozen", "ghost"])
def test_batch_norm_mode_reaches_every_layer(mode):
    network = network_of("mobilenet_v2", (3, 32, 32), batch_norm=mode)
    kinds = [type(module) for module in network.modules() if "BatchNorm" in type(module).__name__]
    expected = {"frozen": FrozenBatchNorm, "ghost": GhostBatchNorm}.get(mode, torch.nn.BatchNorm2d)
    assert set(kinds) == {expected}
    assert len(kinds) == 52


def test_weights_file_is_loaded_and_its_classifier_passed_over(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(3)
    source, path = resnet18(), tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    network = network_of("resnet18", (3, 32, 32), weights=str(path), num_classes=2).eval()
    samples = torch.randn(2, 3, 32, 32)
    source.fc = torch.nn.Identity()
    assert_alike(network.embed(samples), source.eval()(samples))


def test_safetensors_are_loaded(tmp_path):
    source, path = network_of("mlp", (6,), hidden=(5, 4)), tmp_path / "weights.safetensors"
    save_file(source.backbone.state_dict(), path)
    torch.manual_seed(3)
    config = BackboneConfig(name="mlp", hidden=(5, 4), weights=str(path))
    network = build_network(config, sample_shape=(6,))
    torch.testing.assert_close(dict(network.state_dict()), dict(source.state_dict()))


def test_the_file_of_a_whole_network_gives_its_backbone(tmp_path):
    source, path = (
        network_of("conv4", (1, 28, 28), width=4, embedding_dim=3, num_classes=2),
        tmp_path / "run.pth",
    )
    torch.save(source.state_dict(), path)
    torch.manual_seed(9)
    config = BackboneConfig(name="conv4", width=4, weights=str(path))
    network = build_network(config, sample_shape=(1, 28, 28))
    torch.testing.assert_close(dict(network.backbone.state_dict()), dict(source.backbone.state_dict()))


def test_weights_that_do_not_fit_are_refused_by_name_and_shape(tmp_path):
    path = tmp_path / "conv4.pth"
    torch.save(network_of("conv4", (1, 28, 28), width=4).backbone.state_dict(), path)
    with pytest.raises(RequestError) as wrong_width:
        network_of("conv4", (1, 28, 28), width=8, weights=str(path))
    assert "does not fit backbone.name=conv4: wrong shape 0.0.weight [4, 1, 3, 3] for [8, 1, 3, 3]" in str(
        wrong_width.value
    )
    with pytest.raises(RequestError) as wrong_architecture:
        network_of("resnet18", (3, 32, 32), weights=str(path))
    told = str(wrong_architecture.value)
    assert f"backbone.weights={path} does not fit backbone.name=resnet18: missing conv1.weight" in told
    assert "unexpected 0.0.weight, 0.0.bias, 0.1.weight and" in told
    assert "\n" not in told


def test_files_that_hold_no_weights_are_refused(tmp_path):
    for name, content, words in (
        ("none.pth", None, "no such file"),
        ("text.pth", b"not a state_dict", "does not read as a state_dict"),
        ("text.safetensors", b"not tensors either", "does not read as a state_dict"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=words) as refused:
            network_of("conv4", (1, 28, 28), weights=str(tmp_path / name))
        assert "\n" not in str(refused.value)
    torch.save({"model": {"weight": 2.0}}, tmp_path / "numbers.pth")
    with pytest.raises(RequestError, match="names and tensors only: it contains entry 'model'"):
        network_of("conv4", (1, 28, 28), weights=str(tmp_path / "numbers.pth"))


def test_weights_that_would_run_code_are_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(RequestError, match="does not read as a state_dict"):
        network_of("conv4", (1, 28, 28), weights=str(tmp_path / "harmful.pth"))
    assert not (tmp_path / "touched").exists()


def test_pretrained_offline_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(RequestError, match=r"backbone\.pretrained=true .*resnet18.*backbone\.weights=PATH"):
        network_of("resnet18", (3, 32, 32), pretrained=True)


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({"name": "conv4", "pretrained": True}, (1, 28, 28), r"no weights for backbone\.name=conv4"),
        ({"pretrained": True, "weights": "x.pth"}, (3, 32, 32), r"backbone\.weights=x\.pth both"),
        ({"embedding_dim": -1}, (3, 32, 32), r"backbone\.embedding_dim=-1"),
        ({"name": "conv4", "padding": "same"}, (3, 32, 32), r"backbone\.padding=same belongs to"),
        ({"lr_factor": -0.5}, (3, 32, 32), r"backbone\.lr_factor=-0\.5 must be at least 0"),
        ({"width": 0}, (3, 32, 32), r"backbone\.width=0"),
        ({"hidden": ()}, (3,), r"backbone\.hidden=\[\] must be of length 1 or more"),
        ({"hidden": (4, 0)}, (3,), r"backbone\.hidden\[1\]=0 must be at least 1"),
        ({"batch_norm_group": 1}, (3, 32, 32), r"backbone\.batch_norm_group=1"),
        ({"name": "conv4"}, (1, 8, 8), r"16 px or more; the samples are 8×8 px"),
        ({"name": "resnet18"}, (64,), r"backbone\.name=mlp accepts vectors"),
        ({"name": "resnet18"}, (5, 32, 32), r"the samples have 5 \(backbone\.name=conv4"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(fields, shape, words):
    with pytest.raises(ConfigError, match=words):
        build_network(BackboneConfig(**fields), sample_shape=shape)


def test_mobilenet_file_of_the_test_data_loads():
    folder = os.environ.get("FSL_DIST_TEST_DATA")
    if not folder:
        pytest.skip("FSL_DIST_TEST_DATA does not name the folder of the test data")
    path = Path(folder) / "weights" / "mobilenet_v2_imagenet.pth"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    network = network_of("mobilenet_v2", (3, 32, 32), weights=str(path)).eval()
    stored = torch.load(path, weights_only=True)
    assert len(stored) == 314
    torch.testing.assert_close(
        network.backbone.features[18][1].running_var, stored["features.18.1.running_var"]
    )
    assert network(torch.zeros(1, 3, 32, 32)).isfinite().all()
