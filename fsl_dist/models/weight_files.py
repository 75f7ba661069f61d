"""Files of weights, this project's and other tools': what a file is, and which tensors by name it holds.

Nothing of a file is run: torch reads it with weights_only, and objects that are no tensors are passed over as empty
placeholders of this module, whatever class the file names for them.
"""

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from fsl_dist.errors import RequestError

# Entries that tools put a network's tensors under, the first that has any counts. Averages come first: they are what is
# validated, by this project (`average`), timm, DINO and I-JEPA.
_ENTRIES = (
    "average", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "teacher", "target_encoder",
    "state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "backbone", "encoder", "params",
    "student",
)  # fmt: skip
_DEEPEST = 3
# What torch.compile, FSDP and checkpointing put into names, at any place.
_WRAPPED = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
_UNKNOWN_NAME = re.compile(r"Unsupported global: GLOBAL (\S+) was not")
# Names in lower case are functions, which a file may ask to be run; these only make numbers, texts and containers.
_HARMLESS = re.compile(r"(numpy|torch|_codecs|collections|datetime|copyreg|builtins)\.")
_CONTAINERS = ("bytearray", "complex", "dict", "frozenset", "list", "object", "range", "slice", "tuple")
_WAY_OUT = "torch.save(model.state_dict(), PATH) writes one"
_BEGINNINGS = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"RIFF", "a RIFF file (WebP, WAV, AVI)"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip file, which must be unpacked first"),
    (b"BZh", "a bzip2 file, which must be unpacked first"),
    (b"\xfd7zXZ", "an xz file, which must be unpacked first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file, which must be unpacked first"),
    (b"7z\xbc\xaf", "a 7z archive, which must be unpacked first"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes"),
    (b"PAR1", "a Parquet table"),
    (b"GGUF", "a GGUF file"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file (git lfs pull fetches it)"),
)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """The tensors of a file, and how they were found in it."""

    tensors: dict[str, Tensor]
    """by name, as they are in the file: any dtype"""
    found: tuple[str, ...]
    """how, for the log: which entry, which objects were passed over; empty for a plain state_dict"""


class _PassedOver:
    """Stands for an object of a file that is no tensor; what the file says about it is dropped."""

    def __new__(cls, *_args: object, **_named: object) -> "_PassedOver":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_named: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _PassedOverDict(_PassedOver):
    """The same for subclasses of dict: the reader fills in their items, so a plain one is made."""

    def __new__(cls, *_args: object, **_named: object) -> Any:
        return OrderedDict()


def read_weights(path: str) -> WeightFile:
    """The tensors by name of a safetensors file, or of one that `torch.save` wrote; told apart by what is in it.

    Args:
        path: the file.

    Returns:
        The tensors on the CPU. Names are without what torch.compile and FSDP add to them.

    Raises:
        RequestError: there is no such file, or it holds no tensors by name; the line says what the file is.
    """
    source = f"backbone.weights={path}"
    if not Path(path).is_file():
        raise RequestError(f"{source}: there is no such file")
    passed_over: dict[str, type] = {}
    try:
        if _is_safetensors(Path(path)):
            from safetensors.torch import load_file

            loaded: object = load_file(path)
        elif kind := _name_kind(Path(path)):
            raise ValueError(f"it is {kind}")
        else:
            loaded = _load_torch(path, passed_over)
    except Exception as error:  # each format has its own errors, all meaning that the file cannot be used
        raise RequestError(
            f"{source} does not read as a state_dict: {_reason(error)} ({_WAY_OUT})"
        ) from error
    entries, tensors = _find_tensors(loaded, _DEEPEST)
    if not tensors:
        raise RequestError(
            f"{source} does not hold a state_dict, which is names and tensors only: it holds {_describe(loaded)} ({_WAY_OUT})"
        )
    found = []
    if entries:
        found.append("entry " + " of ".join(f"'{entry}'" for entry in reversed(entries)))
    if passed_over:
        found.append(f"other objects passed over ({', '.join(passed_over)})")
    return WeightFile({_WRAPPED.sub(r"\1", key): value for key, value in tensors.items()}, tuple(found))


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: the length of a JSON object in 8 bytes, then that object."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _name_kind(path: Path) -> str:
    """What a file is that is certainly no file of weights; empty for what torch may read."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    for beginning, kind in _BEGINNINGS:
        if start.startswith(beginning):
            return kind
    if start.startswith(b"PK"):
        return _name_archive(path)
    if start[257:262] == b"ustar":
        return "a tar archive"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps of a site that wants a login (download the file itself)"
    if text.startswith(b"<"):
        return "an XML document"
    is_text = all(byte >= 32 or byte in b"\t\r\n\f" for byte in start)
    return "a text file" if is_text else ""


def _name_archive(path: Path) -> str:
    """What a zip archive is that `torch.save` did not write; empty for one that it did."""
    if not zipfile.is_zipfile(path):
        return "a torch checkpoint or zip archive whose end is missing (fetch it again)"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive, which holds code"
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    first = f"; its first file is {names[0]}" if names else ""
    return f"a zip archive that torch.save did not write{first}"


def _load_torch(path: str, passed_over: dict[str, type]) -> object:
    """What `torch.save` wrote. `passed_over` is filled with the names of classes that are read as placeholders.

    Raises UnpicklingError, and torch's other errors, for what must not or cannot be read.
    """
    while True:
        placeholders: list[Any] = [(stand_in, name) for name, stand_in in passed_over.items()]
        try:
            # A file, not its name: torch would read what is named .safetensors as such.
            with (
                Path(path).open("rb") as file,
                torch.serialization.safe_globals(placeholders),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # of other pickle protocols: what cannot be read raises
                return torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            unknown = _UNKNOWN_NAME.search(str(error))
            if unknown is None or {unknown[1], f"builtins.{unknown[1]}"} & passed_over.keys():
                raise
            name = unknown[1]
        if name in _CONTAINERS:
            name = f"builtins.{name}"
        last = name.rpartition(".")[2].lstrip("_")
        if not last[:1].isupper() and not _HARMLESS.match(name):
            raise UnpicklingError(
                f"it asks for {name} to be run, as whole models do, and no code of a file is run"
            )
        kind = _PassedOverDict if "dict" in last.lower() else _PassedOver
        passed_over[name] = type(name, (kind,), {})


def _find_tensors(found: object, depth: int) -> tuple[list[str], dict[str, Tensor]]:
    """The entries that lead to a network's tensors, outermost first, and the tensors; none where there are none."""
    if not isinstance(found, Mapping) or depth < 0:
        return [], {}
    below = {
        entry: _find_tensors(value, depth - 1)
        for entry, value in found.items()
        if isinstance(entry, str) and isinstance(value, Mapping)
    }
    below = {entry: inner for entry, inner in below.items() if inner[1]}
    known = next((entry for entry in _ENTRIES if entry in below), None)
    tensors = {
        key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if known is None and len(below) == 1 and not tensors:
        (known,) = below
    if known is None:
        return [], tensors
    entries, tensors = below[known]
    return [known, *entries], tensors


def _describe(loaded: object) -> str:
    """What was found in place of tensors by name."""
    if isinstance(loaded, _PassedOver):
        return f"a whole model or other object ({type(loaded).__name__}), which only its own code can read"
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    if not loaded:
        return "nothing"
    objects = [
        f"entry '{key}' is a whole object ({type(value).__name__})"
        for key, value in loaded.items()
        if isinstance(value, _PassedOver)
    ]
    return first_few(objects or [f"entry '{key}'" for key in loaded])


def _reason(error: Exception) -> str:
    """The line of an error that says what is wrong; torch's own begin with advice to run the file's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    inner = next((line for line in lines if "WeightsUnpickler error:" in line), None)
    if inner is not None:
        said = inner.partition("WeightsUnpickler error:")[2].strip()
        return (
            said
            or "it is damaged, or a pickle that torch.save did not write or wrote in another protocol than its own"
        )
    return lines[0] if lines else type(error).__name__


def first_few(names: list[str], most: int = 3) -> str:
    """The first of `names`, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
