"""Objects next to a network's tensors in a file, which entry is taken, and damage: objects of every kind of class."""

import collections
import datetime
import enum
import fractions
import functools
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from fsl_dist.errors import RequestError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig

SHAPE = (3, 32, 32)


def build(**fields):
    return build_network(BackboneConfig(name="conv4", width=4, **fields), sample_shape=SHAPE)


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(7)
    return dict(build().backbone.state_dict())


def load(path):
    return build(weights=str(path))


def assert_holds(network, original):
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, original[key]), key


def zeros_like(tensors):
    return {key: torch.zeros_like(value) for key, value in tensors.items()}


class settings_of_old(dict):
    """A dict whose class is named as functions are."""


class Steps(list):
    """A list with attributes."""


class Names(set):
    """A set with attributes."""


class Pair(collections.namedtuple("Pair", "a b")):
    """A tuple."""


class Half(float):
    """A number."""


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("value",)


class Colour(enum.Enum):
    RED = 1


class Weights(collections.OrderedDict):
    """A state_dict's own class."""


def with_attribute(value):
    value.lr = 0.1
    return value


def slotted():
    value = Slotted()
    value.value = 3
    return value


OBJECTS = {
    "dict": lambda: with_attribute(settings_of_old(a=1)),
    "nested": lambda: with_attribute(settings_of_old(a=settings_of_old(b=Steps([settings_of_old()])))),
    "one item": lambda: Steps([1]),
    "list": lambda: with_attribute(Steps([1, 2])),
    "set": lambda: with_attribute(Names([1, 2])),
    "tuple": lambda: with_attribute(Pair(1, 2)),
    "number": lambda: Half(0.5),
    "deque": lambda: collections.deque([1, 2], maxlen=5),
    "counter": lambda: collections.Counter("aab"),
    "defaultdict": lambda: collections.defaultdict(Steps, {"a": Steps([1])}),
    "partial": lambda: functools.partial(print, 1, end=""),
    "partial of a class": lambda: functools.partial(Steps),
    "slots": slotted,
    "enum": lambda: Colour.RED,
    "key": lambda: {Colour.RED: 1, Path("a"): 2},
    "members": lambda: {Path("a"), Colour.RED},
    "frozen": lambda: frozenset({1, 2}),
    "date": lambda: datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "fraction": lambda: fractions.Fraction(1, 3),
    "function": lambda: slotted,
    "bytes": lambda: b"abc",
    "state_dict": lambda: Weights(a=torch.ones(2)),
    "size": lambda: [torch.Size([1]), torch.float16, torch.device("cpu"), torch.strided],
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_of_any_class_is_passed_over(tmp_path, original, kind, zipped):
    """Whatever a pickle does to an object, and in every format, the tensors next to it are read."""
    path, value = tmp_path / "file.pth", OBJECTS[kind]()
    for protocol in (2, 4):
        torch.save(
            {"args": value, "model": Weights(original)},
            path,
            _use_new_zipfile_serialization=zipped,
            pickle_protocol=protocol,
        )
        assert_holds(load(path), original)


@pytest.mark.parametrize(
    "content",
    [
        lambda s: {"model": s, "ema": {"decay": 0.9, "num_updates": torch.tensor(5)}},
        lambda s: {"weights": s, "loss": torch.tensor(0.3)},
        lambda s: {"model": s, "ema": dict(list(zeros_like(s).items())[:-9])},
        lambda s: {"teacher": {"other": torch.ones(9)}, "student": s},
        lambda s: {"a": {"x": torch.ones(1)}, "b": {"c": s}, "mean": torch.zeros(3)},
        lambda s: {"ema": {k: torch.zeros(7) for k in s}, "model": s},
        lambda s: {"ema": s, "model": zeros_like(s), "step": torch.tensor(3)},
    ],
)
def test_the_entry_that_fits_is_taken(tmp_path, original, content):
    torch.save(content(original), tmp_path / "file.pth")
    assert_holds(load(tmp_path / "file.pth"), original)


def test_errors_name_the_entry_and_two_unknown_ones_are_refused(tmp_path, original):
    tensors, path = original, tmp_path / "file.pth"
    torch.save({"a": tensors, "b": zeros_like(tensors)}, path)
    with pytest.raises(RequestError, match=r"has 2 networks with these names, in entry 'a', entry 'b'"):
        load(path)
    torch.save({"model": {k: v for k, v in tensors.items() if k != "0.0.bias"}, "x": torch.ones(1)}, path)
    with pytest.raises(RequestError, match=r"\(entry 'model'\) does not fit .*missing 0\.0\.bias"):
        load(path)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("0.0.weight", lambda v: v.to_sparse(), "not dense"),
        ("0.0.weight", lambda v: v.flatten(1).to_sparse_csr(), "not dense"),
        ("2.0.weight", lambda v: v.to("meta"), "on the device meta"),
        ("2.0.weight", lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "quantized"),
        ("1.1.running_var", lambda v: v - 2, "a variance below 0"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_that_hold_no_numbers_to_use_are_named(tmp_path, original, key, change, words, prefix):
    tensors = {prefix + name: value for name, value in original.items()}
    tensors[prefix + key] = change(tensors[prefix + key])
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(RequestError, match=words) as refused:
        load(tmp_path / "file.pth")
    assert key in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path, original):
    path = tmp_path / "file.pth"
    torch.save(original, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = [member for member in archive.infolist() if "/data/" in member.filename]
    middles = []
    for member in parts:
        lengths = struct.unpack_from("<HH", whole, member.header_offset + 26)  # of the name and the padding
        middles.append(member.header_offset + 30 + sum(lengths) + member.file_size // 2)
    assert len(middles) > 10
    for middle in middles:
        spoilt = bytearray(whole)
        spoilt[middle] ^= 0x40
        path.write_bytes(spoilt)
        with pytest.raises(RequestError, match=r"damaged: its part file/data/\d+ has a wrong checksum"):
            load(path)


def test_files_without_checksums_are_read(tmp_path, original):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(original, tmp_path / "file.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_holds(load(tmp_path / "file.pth"), original)


def test_what_is_removed_from_names_is_said(tmp_path, original):
    for prefix in ("_orig_mod.", "backbone.", "module._orig_mod."):
        torch.save({prefix + key: value for key, value in original.items()}, tmp_path / "file.pth")
        note = load(tmp_path / "file.pth").weights_note
        assert all(f"names without '{part}.'" in note for part in prefix.rstrip(".").split("."))
