"""Read what `torch.save` wrote without running any of it: tensors, numbers, texts and containers, and nothing else.

torch's own `weights_only` reader takes placeholders for classes only where it knows what kind of class each is. This one
gives every name of a file that is not needed for tensors a placeholder that takes whatever a pickle can do to an object
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

# Names in lower case are functions, which a file may ask to be run. These only make numbers, texts and containers.
_HARMLESS = re.compile(
    r"(numpy|torch|_codecs|collections|datetime|copyreg|functools)\."
    r"|builtins\.(bytearray|complex|dict|frozenset|getattr|list|object|range|set|slice|tuple)$"
)
# What makes tensors, and runs nothing that a file names.
_MAKERS = (
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state",
    "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage",
)  # fmt: skip


class _Maker:
    """A function that makes tensors, for a file to call but not to change."""

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
                f"it asks for {cls.__name__} to be run, which is refused: no code of a file is run"
            )
        return super().__call__()

    def __setattr__(cls, _name: str, _value: object) -> None:
        pass


class PassedOver(OrderedDict[Any, Any], metaclass=_AnyClass):
    """Stands for an object of a file that is no tensor. Items are kept, for it may be a state_dict; all else is dropped."""

    def __new__(cls, *_args: object, **_named: object) -> "PassedOver":
        return super().__new__(cls)

    def __setstate__(self, *_state: object) -> None:
        pass

    def append(self, _item: object) -> None:
        pass

    extend = add = append

    def __call__(self, *_arguments: object) -> None:
        raise pickle.UnpicklingError(
            f"it asks for what {type(self).__name__} gives to be run, which is refused: no code of a file is run"
        )

    __hash__ = object.__hash__  # type: ignore[assignment]  # an object may be a key or a member of a set
    __eq__ = object.__eq__


def load_torch(path: str) -> tuple[object, list[str]]:
    """What `torch.save` wrote, on the CPU, and the names of the classes and functions that are read as placeholders.

    Raises UnpicklingError, and torch's other errors, for what must not or cannot be read.
    """
    stand_ins: dict[str, type] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            full = f"{'os' if module in ('nt', 'posix') else module}.{name}"
            if full == "torch.storage._load_from_bytes":  # how tensors go into pickles of other writers
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
    # A file, not its name: torch would read what is named .safetensors as such.
    with Path(path).open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's deprecations: what cannot be read raises
        if torch.serialization._is_zipfile(file):
            # torch would hand it to its TorchScript loader, which compiles code; asked of torch's own reader of zip files.
            records = torch._C.PyTorchFileReader(path).get_all_records()
            if "constants.pkl" in records:
                raise pickle.UnpicklingError("it is a TorchScript archive, which holds code")
        loaded = torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
    return loaded, list(stand_ins)


def _find_known(full: str) -> Any:
    """What a name of a file means where tensors need it; None for all others."""
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
    if (
        full == "torch.storage.UntypedStorage"
    ):  # torch asks it for its dtype alone; the class itself is not given away
        return SimpleNamespace(dtype=torch.uint8)
    return None
