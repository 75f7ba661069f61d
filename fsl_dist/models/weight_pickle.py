"""Read `torch.save` files without running their code: only tensors, numbers, texts and containers.

torch's own `weights_only` reader substitutes placeholders only for classes of known kinds. This reader replaces every
name that is not needed for tensors by a placeholder that accepts all operations that a pickle can apply to an object
(docs/explanation/decisions/0034).
"""

import _compat_pickle
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# Names in lower case are functions, which a file may call. These only create numbers, texts and containers.
_HARMLESS = re.compile(
    r"(numpy|torch|_codecs|collections|datetime|copyreg|functools)\."
    r"|builtins\.(bytearray|complex|dict|frozenset|getattr|list|object|range|set|slice|tuple)$"
)
# Functions that create tensors and run nothing that a file names.
_MAKERS = (
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state",
    "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage",
)  # fmt: skip


class _Maker:
    """A function that creates tensors, which a file may call but not change."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> Any:
        return self._function(*arguments)

    def __setstate__(self, _state: object) -> None:
        pass


class _AnyClass(type):
    """The class of placeholders. To call one is refused where its name is that of a function."""

    def __call__(cls, *_arguments: object, **_named: object) -> Any:
        last = cls.__name__.rpartition(".")[2].lstrip("_")
        if not last[:1].isupper() and not _HARMLESS.match(cls.__name__):
            raise pickle.UnpicklingError(
                f"it requests a call of {cls.__name__}, which is refused: no code of a file is run"
            )
        return super().__call__()

    def __setattr__(cls, _name: str, _value: object) -> None:
        pass


class PassedOver(OrderedDict[Any, Any], metaclass=_AnyClass):
    """Placeholder for an object that is not a tensor. Items are kept, since it may be a state_dict;
    all else is dropped."""

    def __new__(cls, *_args: object, **_named: object) -> "PassedOver":
        return super().__new__(cls)

    def __setstate__(self, *_state: object) -> None:
        pass

    def append(self, _item: object) -> None:
        pass

    extend = add = append

    def __call__(self, *_arguments: object) -> None:
        raise pickle.UnpicklingError(
            f"it requests a call of a result of {type(self).__name__}, which is refused: no code of a file is run"
        )

    __hash__ = object.__hash__  # type: ignore[assignment]  # an object may be a key or a member of a set
    __eq__ = object.__eq__


def load_torch(path: str) -> tuple[object, list[str]]:
    """Read a `torch.save` file to the CPU; return also the names of the classes and functions that became placeholders.

    Raises UnpicklingError, and torch's other errors, for forbidden or unreadable content.
    """
    stand_ins: dict[str, type] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            full = f"{'os' if module in ('nt', 'posix') else module}.{name}"
            if full == "torch.storage._load_from_bytes":  # how other writers put tensors into pickles
                raise pickle.UnpicklingError("it is a pickle that torch.save did not write")
            known = _find_known(full)
            if known is not None:
                return known
            if full not in stand_ins:
                stand_ins[full] = _AnyClass(full, (PassedOver,), {})
            return stand_ins[full]

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader = SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load)
    # Pass a file object, not its name: torch would read a file named .safetensors in that format.
    with Path(path).open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's deprecations: what cannot be read raises
        if torch.serialization._is_zipfile(file):
            # torch would pass it to its TorchScript loader, which compiles code; tested with torch's own zip reader.
            records = torch._C.PyTorchFileReader(path).get_all_records()
            if "constants.pkl" in records:
                raise pickle.UnpicklingError("it is a TorchScript archive, which contains code")
        loaded = torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
    return loaded, list(stand_ins)


def _find_known(full: str) -> Any:
    """The object that a name of a file refers to, if tensors need it; None for all others."""
    if full == "collections.OrderedDict":
        return OrderedDict
    if full == "torch._tensor._rebuild_from_type_v2":  # of tensors with attributes, which are dropped
        return _Maker(lambda function, _type, arguments, _state: function(*arguments))
    if full == "torch.serialization._get_layout":
        return _Maker(torch.serialization._get_layout)
    if full == "_codecs.encode":  # bytes
        return _Maker(lambda text, _encoding="latin1": text.encode("latin1"))
    module, _, name = full.rpartition(".")
    if module == "torch._utils" and name in _MAKERS:
        return _Maker(getattr(torch._utils, name))
    if module == "builtins" and name in ("set", "frozenset", "bytearray", "complex"):
        return {"set": set, "frozenset": frozenset, "bytearray": bytearray, "complex": complex}[name]
    if module == "torch":
        found = getattr(torch, name, None)
        if isinstance(found, torch.dtype) or name in ("Size", "device"):
            return found
        if name.startswith("per_") and isinstance(found, torch.qscheme):
            return found
    if full == "torch.storage.UntypedStorage":  # torch only reads its dtype; the class itself is not exposed
        return SimpleNamespace(dtype=torch.uint8)
    return None
