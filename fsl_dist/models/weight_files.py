"""Weight files of this project and of other tools: the kind of a file, and its tensors by name.

No code of a file is run: objects other than tensors are read as placeholders, for any class that the file names.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fsl_dist.errors import RequestError
from fsl_dist.models.weight_pickle import PassedOver, load_torch

# Entries under which tools store a network's tensors; the first one with tensors is used. Averages come first: they
# are the validated weights, in this project (`average`), timm, DINO and I-JEPA.
_ENTRIES = (
    "average", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "teacher", "target_encoder",
    "state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "backbone", "encoder", "params",
    "student",
)  # fmt: skip
_DEEPEST = 3
# Parts that torch.compile, FSDP and checkpointing add to names, at any position.
_WRAPPED = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
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
    """The tensors of a file, and a description of how they were found."""

    tensors: dict[str, Tensor]
    """by name, with the dtypes of the file"""
    found: tuple[str, ...]
    """how, for the log: which entry, which objects were ignored; empty for a plain state_dict"""
    entry: str
    """the entry they are in, as errors name it; empty for the file itself"""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """Tensors by name at one location of a file."""

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    is_known: bool
    """whether tools store networks there"""

    @property
    def name(self) -> str:
        return "entry " + " of ".join(f"'{entry}'" for entry in reversed(self.path)) if self.path else ""


def read_weights(path: str, own: Mapping[str, Tensor] | None = None) -> WeightFile:
    """Read the tensors by name of a safetensors file, or of a `torch.save` file; the kind is detected by the content.

    Args:
        path: the file.
        own: the backbone's tensors by name. Of several networks in the file, the one with most of them is used.

    Returns:
        The tensors on the CPU. Additions of torch.compile and FSDP to names are removed.

    Raises:
        RequestError: the file does not exist, or has no tensors by name; the message says what the file is.
    """
    source = f"backbone.weights={path}"
    if not Path(path).is_file():
        raise RequestError(f"{source}: no such file")
    passed_over: list[str] = []
    try:
        if _is_safetensors(Path(path)):
            from safetensors.torch import load_file

            loaded: object = load_file(path)
        elif kind := _name_kind(Path(path)):
            raise ValueError(f"it is {kind}")
        else:
            loaded, passed_over = load_torch(path)
    except Exception as error:  # each format has its own errors, which all mean that the file is unusable
        raise RequestError(
            f"{source} does not read as a state_dict: {_reason(error)} ({_WAY_OUT})"
        ) from error
    in_file = _find_entries(loaded)
    entries = [
        _Entry(
            entry.path,
            {_WRAPPED.sub(r"\1", key): value for key, value in entry.tensors.items()},
            entry.is_known,
        )
        for entry in in_file
    ]
    if not entries:
        raise RequestError(
            f"{source} does not contain a state_dict, which is names and tensors only: it contains "
            f"{_describe(loaded)} ({_WAY_OUT})"
        )
    chosen = _choose(entries, own or {}, source)
    all_names = in_file[entries.index(chosen)].tensors
    found = [chosen.name] if chosen.path else []
    wrappers = {
        part for key in all_names for match in _WRAPPED.finditer(key) for part in match[0].split(".") if part
    }
    found += [f"names without '{part}.'" for part in sorted(wrappers)]
    if passed_over:
        found.append(f"other objects ignored ({', '.join(passed_over)})")
    return WeightFile(chosen.tensors, tuple(found), chosen.name)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: the length of a JSON object in 8 bytes, then that object."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _name_kind(path: Path) -> str:
    """The kind of a file that is certainly not a weight file; empty if torch may be able to read it."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if not any(start):
        return "a file that begins with zero bytes only, as an unfinished download leaves (fetch it again)"
    for beginning, kind in _BEGINNINGS:
        if start.startswith(beginning):
            return kind
    if start.startswith(b"PK"):
        return _name_archive(path)
    if start[257:262] == b"ustar":
        return "a tar archive"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps of a site that requires a login (download the file itself)"
    if text.startswith(b"<"):
        return "an XML document"
    is_text = all(byte >= 32 or byte in b"\t\r\n\f" for byte in start)
    return "a text file" if is_text else ""


def _name_archive(path: Path) -> str:
    """The kind of a zip archive that `torch.save` did not write; empty if it did."""
    if not zipfile.is_zipfile(path):
        return "a torch checkpoint or zip archive whose end is missing (fetch it again)"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        # torch.save can omit the checksums; then all are 0.
        has_sums = any(member.CRC for member in archive.infolist())
        damaged = archive.testzip() if has_sums else None
    if damaged:
        return f"damaged: its part {damaged} has a wrong checksum (fetch it again)"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive, which contains code"
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    first = f"; its first file is {names[0]}" if names else ""
    return f"a zip archive that torch.save did not write{first}"


def _find_entries(found: object, depth: int = _DEEPEST) -> list[_Entry]:
    """All mappings of tensors by name in the content of a file,
    in the order of preference if the names do not decide."""
    if not isinstance(found, Mapping) or depth < 0:
        return []
    below = {
        entry: _find_entries(value, depth - 1) for entry, value in found.items() if isinstance(entry, str)
    }
    known = [
        _Entry((entry, *inner.path), inner.tensors, True)
        for entry in _ENTRIES
        for inner in below.pop(entry, ())
    ]
    own = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    others = [_Entry((entry, *inner.path), inner.tensors, False) for entry in below for inner in below[entry]]
    return [*known, *([_Entry((), own, True)] if own else []), *others]


def _choose(entries: list[_Entry], own: Mapping[str, Tensor], source: str) -> _Entry:
    """The entry with most of the tensors `own`; the first of equal ones.

    If none has any, for example because another tool uses other names, the first that is more than numbers of a
    network.
    """
    fits = [_count_fitting(entry.tensors, own) for entry in entries]
    most = max(fits)
    if not most[0]:
        largest = max(len(entry.tensors) for entry in entries)
        return next(entry for entry in entries if 2 * len(entry.tensors) >= largest)
    alike = [entry for entry, fit in zip(entries, fits, strict=True) if fit == most]
    if len(alike) > 1 and not alike[0].is_known:
        raise RequestError(
            f"{source} has {len(alike)} networks with these names, in {first_few([entry.name for entry in alike])} "
            "(a file with the tensors of one of them)"
        )
    return alike[0]


def _count_fitting(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many names of `own` are in `loaded` behind one prefix, and how many of these have the right shape."""
    counts = count_names(loaded, own)
    if not counts:
        return 0, 0
    prefix, most = counts.most_common(1)[0]
    return most, sum(prefix + key in loaded and loaded[prefix + key].shape == own[key].shape for key in own)


def count_names(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Counter[str]:
    """How many of the names `own` does `loaded` have behind each prefix of its names."""
    counts: Counter[str] = Counter()
    for key in loaded:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", key))]
        counts.update(key[:start] for start in starts if key[start:] in own)
    return counts


def _describe(loaded: object) -> str:
    """Describe an object that was found instead of tensors by name."""
    if isinstance(loaded, PassedOver) and not loaded:
        return f"a whole model or other object ({type(loaded).__name__}), which only its own code can read"
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    if not loaded:
        return "nothing"
    objects = [
        f"entry '{key}' is a whole object ({type(value).__name__})"
        for key, value in loaded.items()
        if isinstance(value, PassedOver)
    ]
    return first_few(objects or [f"entry '{key}'" for key in loaded])


def _reason(error: Exception) -> str:
    """The line of an error that gives the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    if said.startswith("Invalid magic number"):
        return "it is a pickle that torch.save did not write"
    if said.startswith(
        (
            "invalid load key",
            "pickle data was truncated",
            "Ran out of input",
            "unpickling stack",
            "persistent",
        )
    ):
        return f"it is damaged, or a pickle that torch.save did not write ({said.rstrip('.')})"
    return said


def first_few(names: list[str], most: int = 3) -> str:
    """The first of `names`, and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
