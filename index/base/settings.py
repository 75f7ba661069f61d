"""Settings classes, and the parser that builds them from YAML and key=value.

Settings that other parsers lose silently are errors here: an unknown key, `true` read as 1, `1e-3` read as text, a
repeated key, and a variant that changes its type. Values are validated by the types of the fields
(`index.base.setting_types`), both in constructors and in files. The `kind` of a variant decides which class a mapping
belongs to, so an error can name the one key that is wrong.
"""

import dataclasses
import difflib
import enum
import json
import logging
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform

from index.base.errors import ConfigError
from index.base.setting_types import check_values, guess, hints_of, join_key, show
from index.base.variants import ONLY, class_of_kind, classes_of, default_of, list_kinds, loaders_of, takes
from index.base.yaml_text import name_of, read_yaml, write_yaml

T = TypeVar("T")

_UNIONS = (typing.Union, types.UnionType)

log = logging.getLogger(__name__)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def settings(part: str) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen, keyword-only dataclass with slots whose constructor validates every value by its field's
    type.

        @settings("episode")
        class EpisodeConfig:
            n_way: Annotated[int, Field(ge=2)] = 10

    `EpisodeConfig(n_way=1)` raises the ConfigError "episode.n_way=1 must be at least 2". `__post_init__` runs after the
    validation; use it for rules between fields. A list is converted to a tuple, text to a path and an int to a float if
    the field has that type.

    Args:
        part: prefix of the field names in error messages; may be empty.

    Returns:
        The class decorator.
    """

    def make(cls: type[T]) -> type[T]:
        rules = getattr(cls, "__post_init__", None)

        def check(self: T) -> None:
            _check_itself(self, part)
            if rules is not None:
                rules(self)

        cls.__post_init__ = check  # type: ignore[attr-defined]
        return dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)

    return make


def parse_yaml(text: str, place: str) -> dict[str, Any]:
    """Read one YAML mapping; `place` (a file name) is named in errors.

    An empty document is an empty mapping. Raises ConfigError with the line for bad syntax, a repeated key, a
    key that is not text, a tag that would build an object, or a document that is not a mapping.
    """
    data = read_yaml(text, place)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{place} must contain a mapping of keys to values; it contains a {name_of(data)}")
    return data


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """Read `["episode.n_way=5", "data.fractions=[0.8,0.2]"]` into nested mappings; values are YAML.

    `key=` without a value is null. Raises ConfigError for an item without '=', an empty part of a key, or two
    items that set the same key.
    """
    nested: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"'{item}' is not of the form key=value, such as episode.n_way=5")
        level = nested
        for part in parts[:-1]:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise ConfigError(f"'{item}' sets a key inside {part}, which an earlier key=value replaced")
        if parts[-1] in level:
            raise ConfigError(f"{key.strip()} is set twice among the key=value arguments; keep one")
        level[parts[-1]] = read_yaml(text, f"'{item if len(item) <= 80 else item[:77] + '...'}'")
    return nested


def to_overrides(settings: Mapping[str, object] | Iterable[str]) -> list[str]:
    """Convert settings to the `key=value` texts that `parse_overrides` reads, so that both pass the same checks.

    Args:
        settings: dotted keys with Python values; or `key=value` texts, which are not changed.

    Returns:
        One text per setting.

    Raises:
        ConfigError: a value cannot be represented in YAML.
    """
    if isinstance(settings, str):
        return [settings]
    if not isinstance(settings, Mapping):
        return list(settings)
    texts = []
    for key, value in settings.items():
        try:
            texts.append(f"{key}={json.dumps(_plain(value), ensure_ascii=False)}")
        except TypeError:
            raise ConfigError(f"{key} contains a {name_of(value)}, which no setting accepts") from None
    return texts


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`: mappings are merged key by key, everything else is replaced. Neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def lay_over(cls: type, base: Mapping[str, Any], over: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`merge` for data of the dataclass tree `cls`, in which `over` may name another `kind` than `base`.

    If the kind changes, keys of `base` that the new kind does not have are dropped, with one warning that names
    `place`, the origin of `base`. Keys that both kinds have are kept, and so is everything in `over`: `validate`
    refuses what does not fit. A class with several kinds lists in `kinds_of` (field → kinds) which kinds have a
    field; a field at its default belongs to all. Raises ConfigError if the new kind cannot be loaded.
    """
    return _lay(cls, None, base, over, "", place)


def validate(cls: type[T], data: Mapping[str, Any], place: str, prefix: str = "") -> T:
    """Build the frozen dataclass tree `cls` from plain data, refusing everything that does not fit exactly.

    `place` is the origin of the data, for error messages; `prefix` is put before keys in errors (`"index"` gives
    `index.shards`). For a field that is a union of dataclasses, the `kind: Literal[...]` in the data selects the class;
    without a `kind` it is the class of the field's default. Missing keys keep the value of the field's default. Raises
    ConfigError, in one line, about the first thing that is wrong; a ConfigError from a dataclass's own `__post_init__`
    is passed on unchanged.
    """
    return typing.cast(T, _Parser(cls, place, prefix).build(cls, data, prefix, dataclasses.MISSING))


def dump(config: Any) -> dict[str, Any]:
    """Turn a dataclass tree into plain mappings, lists and scalars, in the order of its fields."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def to_yaml(config: Any) -> str:
    """Write a dataclass tree, or the result of `dump`, as YAML.

    `validate(cls, parse_yaml(to_yaml(config), place), place)` returns an equal tree.
    """
    data = dict(config) if isinstance(config, Mapping) else dump(config)
    return write_yaml(data)


def known_keys(cls: type) -> set[str]:
    """Every dotted key of the dataclass tree `cls`, those of all variants."""
    return set(_keys_of(cls, ""))


def _check_itself(config: Any, part: str) -> None:
    cls: type = type(config)
    given = {name: getattr(config, name) for name in hints_of(cls)}
    for name, value in check_values(cls, given, part, "").items():
        if value is not given[name]:
            object.__setattr__(config, name, value)


def _lay(
    hint: Any, default: Any, base: Mapping[str, Any], over: Mapping[str, Any], key: str, place: str
) -> dict[str, Any]:
    """`lay_over` for a value of the type `hint`; `default` is the field's default value."""
    loaders = loaders_of(hint)
    old = base.get("kind", getattr(default, "kind", None))
    kind = over.get("kind", old)
    cls = class_of_kind(loaders, kind)
    if cls is None:
        return merge(base, over)
    merged = dict(base)
    if kind != old:
        before = class_of_kind(loaders, old)
        dropped = [
            name
            for name, value in base.items()
            if not takes(cls, kind, name, value) and (before is None or takes(before, old, name, value))
        ]
        if dropped:
            where = join_key(key, "kind")
            names = ", ".join(join_key(key, name) for name in dropped)
            log.warning(f"{where}={kind} drops what belongs to {where}={old} in {place}: {names}")
        merged = {name: value for name, value in base.items() if name not in dropped}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name, value in over.items():
        below = merged.get(name)
        if name in fields and isinstance(below, Mapping) and isinstance(value, Mapping):
            inner = hints_of(cls)[name]
            merged[name] = _lay(inner, default_of(fields[name]), below, value, join_key(key, name), place)
        else:
            merged[name] = value
    return merged


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dump(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class _Parser:
    """One validation, with the root class for the nearest name, and the origin of the data for errors."""

    def __init__(self, root: type, place: str, prefix: str) -> None:
        self.root = root
        self.place = place
        self.prefix = prefix

    def build(self, hint: Any, value: Any, key: str, default: Any) -> Any:
        """Build the dataclasses in a value of the type `hint`; `default` is the field's default value."""
        loaders = loaders_of(hint)
        if loaders:
            others = [option for option in typing.get_args(hint) if not loaders_of(option)]
            if not isinstance(value, Mapping) and typing.get_origin(hint) in _UNIONS and others:
                return value  # None, or a word in place of a mapping
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{key or 'the document'}={show(value)} must be a mapping of keys to values ({self.place})"
                )
            return self._build_dataclass(self._choose(loaders, value, key, default), value, key, default)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        missing = dataclasses.MISSING
        if origin is tuple and isinstance(value, list | tuple) and loaders_of(args[0]):
            return tuple(self.build(args[0], v, f"{key}[{i}]", missing) for i, v in enumerate(value))
        if origin is dict and isinstance(value, Mapping) and loaders_of(args[1]):
            return {k: self.build(args[1], v, join_key(key, str(k)), missing) for k, v in value.items()}
        return value

    def _build_dataclass(self, cls: type, data: Mapping[str, Any], key: str, default: Any) -> Any:
        hints = hints_of(cls)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        values: dict[str, Any] = {}
        if type(default) is cls:
            values = {name: getattr(default, name) for name in fields}
        for name, value in data.items():
            if name not in fields:
                self._refuse_key(name, cls, key)
            values[name] = self.build(hints[name], value, join_key(key, name), default_of(fields[name]))
        values = check_values(cls, values, key, self.place)
        for name, field in fields.items():
            if name not in values and default_of(field) is dataclasses.MISSING:
                raise ConfigError(f"{join_key(key, name)} is required and not set ({self.place})")
        return cls(**values)

    def _choose(
        self, loaders: Mapping[str, Callable[[], type]], data: Mapping[str, Any], key: str, default: Any
    ) -> type:
        if ONLY in loaders:
            return loaders[ONLY]()
        if "kind" in data:
            kind = data["kind"]
            if isinstance(kind, str) and kind in loaders:
                return loaders[kind]()
            raise ConfigError(
                f"{join_key(key, 'kind')}={show(kind)} must be one of {', '.join(loaders)} "
                f"({self.place}){guess(str(kind), list(loaders))}"
            )
        if dataclasses.is_dataclass(default):
            return type(default)
        raise ConfigError(f"{join_key(key, 'kind')} is required: one of {', '.join(loaders)} ({self.place})")

    def _refuse_key(self, name: str, cls: type, key: str) -> typing.NoReturn:
        """Raise an error about the unknown key `name` of `cls` at `key`:
        where it belongs, or which key was probably meant."""
        siblings = _siblings_of(self.root, cls)
        owners = list_kinds([c for c in siblings if c is not cls and name in hints_of(c)])
        kind = join_key(key, "kind")
        full = join_key(key, name)
        if owners:
            raise ConfigError(
                f"{full} belongs to {' or '.join(f'{kind}={o}' for o in owners)}; "
                f"this run has {kind}={list_kinds([cls])[0]} ({self.place})"
            )
        # Names are compared without their prefix, which would make any two keys of one part similar.
        near = difflib.get_close_matches(name, hints_of(cls), n=1)
        places = {k.rsplit(".", 1)[-1]: k for k in _keys_of(self.root, self.prefix)}
        far = difflib.get_close_matches(name, places, n=1, cutoff=0.75)
        hint = ""
        if near or far:
            hint = f"; did you mean {join_key(key, near[0]) if near else places[far[0]]}?"
        if not hint:
            hint = f"; {key or 'this part'} takes {', '.join(hints_of(cls))}"
        raise ConfigError(f"unknown key {full} in {self.place}{hint}")


def _siblings_of(root: type, cls: type) -> list[type]:
    """The variants that `cls` competes with in some field of the tree under `root`."""
    waiting, seen = [root], {root}
    while waiting:
        for hint in hints_of(waiting.pop()).values():
            variants = classes_of(hint)
            if cls in variants:
                return variants
            waiting += [v for v in variants if v not in seen]
            seen.update(variants)
    return []


def _keys_of(cls: type, prefix: str) -> Iterable[str]:
    for name, hint in hints_of(cls).items():
        variants = [] if typing.get_origin(hint) in (tuple, dict) else classes_of(hint)
        if not variants:
            yield join_key(prefix, name)
        for variant in variants:
            yield from _keys_of(variant, join_key(prefix, name))
