"""The dataclasses that a field may contain, by `kind`; each class is loaded when its kind is used."""

import contextlib
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from index.base.errors import ConfigError
from index.base.setting_types import hints_of

ONLY = ""  # instead of a kind: the one dataclass of a hint that offers no choice


@dataclasses.dataclass(frozen=True, slots=True)
class Variants:
    """In `Annotated[MethodSettings, Variants(find)]`:
    further dataclasses for a field, each loaded when its kind is used.

    They extend those that the type itself names. A loader may raise ConfigError; it appears only if that kind is used.
    """

    find: Callable[[], Mapping[str, Callable[[], type]]]
    """kind → what returns the dataclass with that `kind: Literal[...]`"""


def loaders_of(hint: Any) -> dict[str, Callable[[], type]]:
    """Kind → loader of its dataclass, for a hint that is a dataclass, a union of some,
    or has `Variants`; otherwise empty."""
    marks: list[Any] = []
    if typing.get_origin(hint) is typing.Annotated:
        hint, *marks = typing.get_args(hint)
    variants = [mark for mark in marks if isinstance(mark, Variants)]
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    named = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    if len(named) == 1 and not variants:
        return {ONLY: functools.partial(_itself, named[0])}
    loaders: dict[str, Callable[[], type]] = {}
    for cls in named:
        loaders |= dict.fromkeys(list_kinds([cls]), functools.partial(_itself, cls))
    for mark in variants:
        loaders |= mark.find()
    return loaders


def _itself(cls: type) -> type:
    return cls


def classes_of(hint: Any) -> list[type]:
    """The dataclasses of a hint, all loaded, also those in tuple[...] and dict[...];
    one that cannot be loaded is left out."""
    if typing.get_origin(hint) in (tuple, dict):
        return [cls for arg in typing.get_args(hint) for cls in classes_of(arg)]
    found = []
    for load in loaders_of(hint).values():
        with contextlib.suppress(ConfigError):
            found.append(load())
    return list(dict.fromkeys(found))


def class_of_kind(loaders: Mapping[str, Callable[[], type]], kind: Any) -> type | None:
    """The loaded class for `kind`; None if `loaders` has no such kind."""
    load = loaders.get(ONLY) or (loaders.get(kind) if isinstance(kind, str) else None)
    return load() if load else None


def takes(cls: type, kind: Any, name: str, value: Any) -> bool:
    """Whether `cls` accepts `value` for the key `name` when it is of `kind`."""
    if name not in hints_of(cls):
        return False
    is_own = kind in getattr(cls, "kinds_of", {}).get(name, (kind,))
    return is_own or value == next(default_of(f) for f in dataclasses.fields(cls) if f.name == name)


def list_kinds(variants: list[type]) -> list[str]:
    """The kinds that classes name in `kind: Literal[...]`."""
    hints = [hints_of(cls).get("kind") for cls in variants]
    return [kind for hint in hints if typing.get_origin(hint) is Literal for kind in typing.get_args(hint)]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default value of a field; `dataclasses.MISSING` if the field is required."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
