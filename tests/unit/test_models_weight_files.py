"""Checkpoints of other tools: every way in which tools wrap and name a network's tensors, and files that are no weights.

A table: entries × prefixes × file formats × number types × backbones. The right answer is always that the backbone holds
exactly the tensors that were saved, or that one line says why not and nothing is changed.
"""

import argparse
import collections
import gzip
import io
import itertools
import os
import pickle
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from fsl_dist.errors import RequestError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.weight_files import read_weights

SHAPE = (3, 32, 32)


def build(name, **fields):
    return build_network(BackboneConfig(name=name, **fields), sample_shape=SHAPE)


def make_original(name):
    """A network's own tensors by name, as the library that it comes from saves them, with a head for 37 classes."""
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:"), num_classes=37).state_dict()
    torch.manual_seed(7)
    tensors = dict(build(name, **({"width": 4} if name == "conv4" else {})).backbone.state_dict())
    return tensors | {"fc.weight": torch.randn(37, 4), "fc.bias": torch.randn(37)}


ORIGINALS = {}


def original_of(name):
    if name not in ORIGINALS:
        ORIGINALS[name] = make_original(name)
    return ORIGINALS[name]


def load(name, path):
    return build(name, weights=str(path), **({"width": 4} if name == "conv4" else {}))


def assert_holds(network, name, dtype=torch.float32):
    """Every tensor of the backbone is the one that was saved, as `dtype` rounds it."""
    backbone = network.backbone.model if name.startswith("timm:") else network.backbone
    for key, value in backbone.state_dict().items():
        expected = original_of(name)[key]
        expected = expected.to(dtype).float() if expected.is_floating_point() else expected
        assert torch.equal(value, expected), key
        assert value.dtype == expected.dtype


ENTRIES = {
    "": lambda s: s,
    "entry 'state_dict'": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "entry 'model'": lambda s: {"model": s, "lr": 0.1},
    "entry 'model_state_dict'": lambda s: {"epoch": 1, "model_state_dict": s, "loss": torch.ones(())},
    "entry 'net'": lambda s: {"net": s, "acc": 93.1},
    "entry 'network'": lambda s: {"network": s, "average": {}},
    "entry 'average'": lambda s: {"network": zeros_like(s), "average": s},
    "entry 'ema'": lambda s: {"ema": s, "model": zeros_like(s)},
    "entry 'state_dict_ema'": lambda s: {"state_dict": zeros_like(s), "state_dict_ema": s},
    "entry 'model_ema'": lambda s: {"model": zeros_like(s), "model_ema": s},
    "entry 'teacher'": lambda s: {"student": zeros_like(s), "teacher": s, "epoch": 100},
    "entry 'student'": lambda s: {"student": s},
    "entry 'weights'": lambda s: {"weights": s, "step": 4},
    "entry 'model' of 'state_dict'": lambda s: {"state_dict": {"model": s}},
    "entry 'state_dict' of 'model'": lambda s: {"model": {"state_dict": s, "name": "resnet"}, "epoch": 2},
}  # fmt: skip


def zeros_like(tensors):
    return {key: torch.zeros_like(value) for key, value in tensors.items()}


@pytest.mark.parametrize("entry", ENTRIES)
def test_tensors_are_found_under_every_entry(tmp_path, entry):
    name, path = "conv4", tmp_path / "file.pth"
    torch.save(ENTRIES[entry](original_of(name)), path)
    network = load(name, path)
    assert_holds(network, name)
    assert network.weights_note.startswith(f"backbone.weights={path}: {entry}")
    assert "\n" not in network.weights_note
    assert "fc.weight, fc.bias" in network.weights_note


PARTS = ["module.", "_orig_mod.", "backbone.", "encoder.", "model.", "net.", "encoder_q."]
PREFIXES = [
    *PARTS,
    *(a + b for a, b in itertools.permutations(PARTS, 2)),
    "module.model.backbone._orig_mod.",
    "my_resnet.",
]


@pytest.mark.parametrize("name", ["conv4", "timm:resnet10t"])
def test_names_are_known_behind_every_prefix(tmp_path, name):
    torch.manual_seed(0)
    for number, prefix in enumerate(PREFIXES[:: 1 if name == "conv4" else 8]):
        path = tmp_path / f"{number}.pth"
        tensors = {prefix + key: value for key, value in original_of(name).items()}
        torch.save(tensors | {"projector.0.weight": torch.ones(2, 2)}, path)
        network = load(name, path)
        assert_holds(network, name)
        assert "projector.0.weight" in network.weights_note


def test_every_entry_prefix_format_and_number_type_go_together(tmp_path):
    name = "conv4"
    cases = itertools.product(
        ["", "entry 'teacher'"],
        ["", "module._orig_mod."],
        [torch.float32, torch.float16, torch.bfloat16, torch.float64],
        [".bin", ".safetensors"],
    )
    for entry, prefix, dtype, ending in cases:
        tensors = {
            prefix + key: value.to(dtype) if value.is_floating_point() else value
            for key, value in original_of(name).items()
        }
        path = tmp_path / f"file{ending}"
        torch.save(ENTRIES[entry](tensors), path)
        assert_holds(load(name, path), name, dtype)
        if not entry:  # safetensors have no entries
            save_file({key: value.contiguous() for key, value in tensors.items()}, path)
            assert_holds(load(name, path), name, dtype)
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
            assert_holds(load(name, path), name, dtype)


def test_of_two_networks_the_averaged_or_the_trained_one_is_taken(tmp_path):
    name = "conv4"
    for used, other in [
        ("module.encoder_q.", "module.encoder_k."),
        ("teacher.backbone.", "student.backbone."),
        ("online_encoder.", "target_encoder."),
        ("module.base_encoder.", "module.momentum_encoder."),
    ]:
        tensors = {other + key: torch.zeros_like(value) for key, value in original_of(name).items()}
        tensors |= {used + key: value for key, value in original_of(name).items()}
        tensors["module.queue"] = torch.ones(4, 8)
        torch.save({"state_dict": tensors, "arch": name}, tmp_path / "two.pth.tar")
        network = load(name, tmp_path / "two.pth.tar")
        assert_holds(network, name)
        assert f"names without '{used}'" in network.weights_note
    tensors = {
        f"{side}.{key}": value for side in ("left", "right") for key, value in original_of(name).items()
    }
    torch.save(tensors, tmp_path / "alike.pth")
    with pytest.raises(
        RequestError, match=r"has 2 networks with these names, with the prefixes 'left\.', 'right\.'"
    ):
        load(name, tmp_path / "alike.pth")


def test_averaged_models_of_torch_and_compiled_parts_are_known(tmp_path):
    name = "conv4"
    source = load_source(name)
    averaged = torch.optim.swa_utils.AveragedModel(source)
    torch.save(averaged.state_dict(), tmp_path / "swa.pth")
    assert_holds(load(name, tmp_path / "swa.pth"), name)
    inner = {key.replace(".", "._orig_mod.", 1): value for key, value in original_of(name).items()}
    torch.save(inner, tmp_path / "compiled.pth")
    assert_holds(load(name, tmp_path / "compiled.pth"), name)


def load_source(name):
    """A module with the saved tensors."""
    source = build(name, width=4).backbone
    source.load_state_dict(
        {key: value for key, value in original_of(name).items() if not key.startswith("fc.")}
    )
    return source


class Settings:
    """An object of a class that a reader of the file does not have."""

    def __init__(self):
        self.lr = 0.1


class SettingsDict(dict):
    """The same, a kind of dict."""


@pytest.mark.parametrize(
    ("objects", "named"),
    [
        ({"args": argparse.Namespace(lr=0.1, arch="resnet18")}, "argparse.Namespace"),
        ({"best": np.float64(0.9), "epoch": np.int64(3)}, r"numpy\S*scalar"),
        ({"hyper_parameters": Settings()}, r"\S+Settings"),
        ({"hyper_parameters": SettingsDict(lr=0.1)}, r"\S+SettingsDict"),
        ({"out": Path("runs/x")}, r"pathlib\S+"),
        ({"history": np.arange(3.0)}, r"numpy\S+"),
        ({"seen": collections.defaultdict(list, {3: [1, 2]}), "ids": range(3)}, r"builtins\.list"),
    ],
)
def test_other_objects_are_passed_over_and_named(tmp_path, objects, named):
    name, path = "conv4", tmp_path / "lightning.ckpt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in original_of(name).items()}, **objects}, path)
    network = load(name, path)
    assert_holds(network, name)
    assert "other objects ignored" in network.weights_note
    assert re.search(named, network.weights_note)


def test_a_whole_model_is_refused_in_one_line(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for content in (model, {"model": model, "epoch": 3}):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(
            RequestError,
            match=r"whole .*\(torch\.nn\S+Sequential\).*torch\.save\(model\.state_dict\(\), PATH\)",
        ):
            load("conv4", tmp_path / "model.pth")


class Harmful:
    """Asks the reader of its pickle to run something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_no_code_of_a_file_is_run(tmp_path):
    mark = tmp_path / "touched"
    for function, arguments in (
        (Path.touch, (mark,)),
        (eval, (f"open({str(mark)!r}, 'w')",)),
        (exec, (f"open({str(mark)!r}, 'w')",)),
        (open, (str(mark), "w")),
        (os.system, (f"touch {mark}",)),
        (subprocess.check_call, (["touch", str(mark)],)),
    ):
        torch.save(
            {"state_dict": original_of("conv4"), "x": Harmful(function, *arguments)}, tmp_path / "bad.pth"
        )
        with pytest.raises(RequestError, match="does not read as a state_dict") as refused:
            load("conv4", tmp_path / "bad.pth")
        assert "\n" not in str(refused.value)
        assert ", which is refused" in str(refused.value)
        assert "weights_only" not in str(refused.value)
        if function is not Path.touch:  # its name is asked of Path by getattr
            assert function.__name__ in str(refused.value)
        assert not mark.exists()
    torch.save(
        {"state_dict": original_of("conv4"), "x": Harmful(subprocess.Popen, ["touch", str(mark)])},
        tmp_path / "x.pth",
    )
    assert_holds(load("conv4", tmp_path / "x.pth"), "conv4")  # a placeholder takes the place of the class
    assert not mark.exists()


def bytes_of(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def write_zip(names):
    def write(buffer):
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


def write_tar(buffer):
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


PICTURE = Image.new("RGB", (4, 4))
OTHER_FILES = {
    "empty": (b"", "an empty file"),
    "jpeg": (bytes_of(lambda b: PICTURE.save(b, "JPEG")), "a JPEG image"),
    "png": (bytes_of(lambda b: PICTURE.save(b, "PNG")), "a PNG image"),
    "tiff": (bytes_of(lambda b: PICTURE.save(b, "TIFF")), "a TIFF image"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
    "zip": (bytes_of(write_zip(["readme.txt"])), "a zip archive that torch.save did not write; its first file is readme.txt"),
    "npz": (bytes_of(lambda b: np.savez(b, w=np.ones(3))), "a NumPy archive"),
    "npy": (bytes_of(lambda b: np.save(b, np.ones(3))), "a NumPy array"),
    "gzip": (gzip.compress(b"weights"), "a gzip file"),
    "tar": (bytes_of(write_tar), "a tar archive"),
    "torchscript": (bytes_of(write_zip(["m/data.pkl", "m/constants.pkl", "m/code/x.py"])), "a TorchScript archive"),
    "text": (b'{"weights": 1}', "a text file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "cut": (bytes_of(lambda b: torch.save({"w": torch.ones(999)}, b))[:600], "whose end is missing"),
    "noise": (bytes(range(256)), "it is damaged, or a pickle that torch.save did not write"),
    "pickle": (pickle.dumps({"w": np.ones(3)}, protocol=4), "a pickle that torch.save did not write"),
    "old pickle": (pickle.dumps({"w": 1}, protocol=2), "it is a pickle that torch.save did not write"),
    "pickled tensors": (pickle.dumps({"w": torch.ones(3)}), "it is a pickle that torch.save did not write"),
    "zeros": (bytes(5000), "begins with zero bytes only"),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_what_is_no_file_of_weights_is_named(tmp_path, kind, ending):
    content, words = OTHER_FILES[kind]
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    with pytest.raises(RequestError) as refused:
        read_weights(str(path))
    said = str(refused.value)
    assert said.startswith(f"backbone.weights={path} does not read as a state_dict: ")
    assert words in said
    assert "\n" not in said
    assert said.endswith("(torch.save(model.state_dict(), PATH) writes one)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "it contains nothing"),
        ([torch.ones(2)], "it contains a list"),
        (torch.ones(2), "it contains a Tensor"),
        ({"epoch": 3, "lr": 0.1}, "it contains entry 'epoch', entry 'lr'"),
        ({"ema": {"shadow_params": [torch.ones(2)]}}, "it contains entry 'ema'"),
    ],
)
def test_a_file_without_tensors_by_name_says_what_it_holds(tmp_path, content, words):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(
        RequestError, match="does not contain a state_dict, which is names and tensors only"
    ) as refused:
        read_weights(str(tmp_path / "file.pth"))
    assert words in str(refused.value)


def change(key, value):
    return lambda tensors: {**tensors, key: value}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "2.0.weight"}, r"missing 2\.0\.weight \("),
        (lambda s: {k: v for k, v in s.items() if k[0] == "0"}, r"missing 1\.0\.weight, 1\.0\.bias, 1\.1\.weight and \d+ more"),
        (lambda s: {k: v for k, v in s.items() if k.startswith("fc")}, r"missing 0\.0\.weight"),
        (change("4.0.weight", torch.ones(2)), r"unexpected 4\.0\.weight \("),
        (change("0.0.weight", torch.ones(8, 3, 3, 3)), r"wrong shape 0\.0\.weight \[8, 3, 3, 3\] for \[4, 3, 3, 3\]"),
        (change("0.0.weight", torch.ones(4, 3, 3, 3, dtype=torch.int8)), r"wrong dtype 0\.0\.weight torch\.int8 for torch\.float32"),
        (change("1.0.bias", torch.tensor([0.0, float("nan"), 0, 0])), r"tensor backbone\.1\.0\.bias contains numbers that are NaN"),
        (change("1.0.bias", torch.tensor([0.0, float("-inf"), 0, 0])), r"tensor backbone\.1\.0\.bias contains numbers that are NaN"),
        (change("1.0.bias", torch.full((4,), 1e300, dtype=torch.float64)), r"tensor backbone\.1\.0\.bias contains numbers"),
        (change("3.1.running_var", torch.full((4,), float("inf"))), r"tensor backbone\.3\.1\.running_var contains numbers"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_nothing_passes_that_does_not_fit_or_is_not_finite(tmp_path, spoil, words, prefix):
    tensors = {prefix + key: value for key, value in spoil(original_of("conv4")).items()}
    torch.save({"state_dict": tensors}, tmp_path / "file.pth")
    with pytest.raises(RequestError, match=words) as refused:
        load("conv4", tmp_path / "file.pth")
    assert "\n" not in str(refused.value)
    assert f"backbone.weights={tmp_path / 'file.pth'}" in str(refused.value)


def test_a_deeper_network_of_the_same_shapes_does_not_pass(tmp_path):
    """ResNet-34 has all of ResNet-18's tensors, and more blocks: its first blocks are no ResNet-18."""
    torch.save({"state_dict": models.resnet34().state_dict()}, tmp_path / "deeper.pth")
    with pytest.raises(
        RequestError, match=r"does not fit backbone\.name=resnet18: unexpected layer1\.2\.conv1\.weight"
    ):
        build("resnet18", weights=str(tmp_path / "deeper.pth"))
