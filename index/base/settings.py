"""The strict gate that every configuration passes: YAML and key=value in, frozen dataclasses out.

Each way a setting can be lost without a word is closed here: an unknown key, `true` read as 1, `1e-3` read as
text, a key given twice, and a variant that changes its type. pydantic judges single values; which dataclass
they belong to is decided by the `kind` of the variant, so that an error can name the one key that is wrong.
"""

import dataclasses
import difflib
import enum
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import pydantic
import yaml

from index.base.errors import ConfigError

T = TypeVar("T")

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$")
_FLOAT = re.compile(r"^(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF))$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
# Order decides: "12" is an int before it is a float.
_SCALARS = (("bool", _BOOL), ("int", _INT), ("float", _FLOAT), ("null", _NULL))


def parse_yaml(text: str, place: str) -> dict[str, Any]:
    """Read one YAML mapping; `place` (a file name) is named in errors.

    Scalars follow YAML 1.2: only true/false are booleans, `1e-3` is a float, `010` is ten; a date is text, and so is .nan,
    which no setting takes.
    An empty document is an empty mapping. Raises ConfigError with the line for bad syntax, a repeated key, a
    key that is not text, a tag that would build an object, or a document that is not a mapping.
    """
    data = _load(text, place)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{place} must hold a mapping of keys to values; it holds a {_name_of(data)}")
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
        level[parts[-1]] = _load(text, f"'{item}'")
    return nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`: mappings are joined key by key, everything else is replaced. Neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def validate(cls: type[T], data: Mapping[str, Any], place: str, prefix: str = "") -> T:
    """Build the frozen dataclass tree `cls` from plain data, refusing whatever does not fit exactly.

    `place` names where the data came from; `prefix` is put before keys in errors (`"index"` gives
    `index.shards`). A field that is a union of dataclasses takes the one whose `kind: Literal[...]` the data
    names; without a `kind` it takes the class of the field's default. Keys that are left out keep the value of
    the field's default. Raises ConfigError, one line, about the first thing that is wrong; a ConfigError of a
    dataclass's own `__post_init__` comes through as it is.
    """
    return typing.cast(T, _Gate(cls, place, prefix).build(cls, data, prefix, dataclasses.MISSING))


def dump(config: Any) -> dict[str, Any]:
    """Turn a dataclass tree into plain mappings, lists and scalars, in the order of its fields."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def to_yaml(config: Any) -> str:
    """Write a dataclass tree, or what `dump` makes of one, as YAML; `validate(cls, parse_yaml(to_yaml(config), place), place)`
    gives an equal tree."""
    data = dict(config) if isinstance(config, Mapping) else dump(config)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)


def known_keys(cls: type) -> set[str]:
    """Every dotted key of the dataclass tree `cls`, those of all variants."""
    return set(_keys_of(cls, ""))


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars that refuses repeated keys and keys that are not text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(
                    f"{self.name}, line {line}: key {key!r} is a {_name_of(key)}; keys must be text (quote it)"
                )
            if key in seen:
                raise ConfigError(f"{self.name}, line {line}: key {key} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text which this loader or a YAML 1.1 reader would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line breaks to a space unless the text is double-quoted.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _SCALARS:
    # None as first characters: the rule is tried for every plain scalar, which a configuration can afford.
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _load(text: str, place: str) -> Any:
    try:
        loader = _Loader(text)
        loader.name = place
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{place}{where}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{place}: not YAML: {' '.join(str(error).split())}") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dump(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


@dataclasses.dataclass(frozen=True, slots=True)
class MoreVariants:
    """In `Annotated[A | B, MoreVariants(find)]`: further dataclasses of the union, found when a value is built."""

    find: Callable[[], Iterable[type]]


class _Gate:
    """One validation: remembers the root class, for the nearest name, and the place, for errors."""

    def __init__(self, root: type, place: str, prefix: str) -> None:
        self.root = root
        self.place = place
        self.prefix = prefix

    def build(self, hint: Any, value: Any, key: str, default: Any) -> Any:
        """Build the value of the type `hint`; `default` is what its field holds when nothing is said."""
        variants = _dataclasses_of(hint)
        if variants:
            if value is None and type(None) in typing.get_args(hint):
                return None
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{key or 'the document'}={_show(value)} must be a mapping of keys to values ({self.place})"
                )
            return self._build_dataclass(self._choose(variants, value, key, default), value, key, default)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is tuple and len(args) == 2 and args[1] is Ellipsis and _dataclasses_of(args[0]):
            if not isinstance(value, list | tuple):
                raise ConfigError(f"{key}={_show(value)} must be a list ({self.place})")
            missing = dataclasses.MISSING
            return tuple(self.build(args[0], v, f"{key}[{i}]", missing) for i, v in enumerate(value))
        if origin is dict and _dataclasses_of(args[1]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key}={_show(value)} must be a mapping of keys to values ({self.place})")
            return {
                k: self.build(args[1], v, _join(key, str(k)), dataclasses.MISSING) for k, v in value.items()
            }
        return self._build_leaf(hint, value, key)

    def _build_dataclass(self, cls: type, data: Mapping[str, Any], key: str, default: Any) -> Any:
        hints = _hints_of(cls)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        values: dict[str, Any] = {}
        if type(default) is cls:
            values = {name: getattr(default, name) for name in fields}
        for name, value in data.items():
            if name not in fields:
                self._refuse_key(name, cls, key)
            values[name] = self.build(hints[name], value, _join(key, name), _default_of(fields[name]))
        for name, field in fields.items():
            if name not in values and _default_of(field) is dataclasses.MISSING:
                raise ConfigError(f"{_join(key, name)} is required and not set ({self.place})")
        try:
            return cls(**values)
        except ValueError as error:
            where = f"{key}: " if key else ""
            raise ConfigError(f"{where}{' '.join(str(error).split())} ({self.place})") from None

    def _build_leaf(self, hint: Any, value: Any, key: str) -> Any:
        try:
            # JSON mode: a list may become a tuple and text a path, yet a bool never becomes an int.
            return _adapter_of(hint).validate_json(json.dumps(_plain(value)), strict=True)
        except pydantic.ValidationError as error:
            problems = error.errors(include_url=False, include_context=False)
            where = key + "".join(f"[{part}]" for part in problems[0]["loc"] if isinstance(part, int))
            rules = dict.fromkeys(_rule_of(problem["msg"]) for problem in problems)
            shown = _show(problems[0]["input"])
            raise ConfigError(f"{where}={shown} must be {' or '.join(rules)} ({self.place})") from None
        except TypeError:
            raise ConfigError(
                f"{key} holds a {_name_of(value)}, which no setting takes ({self.place})"
            ) from None

    def _choose(self, variants: list[type], data: Mapping[str, Any], key: str, default: Any) -> type:
        if len(variants) == 1:
            return variants[0]
        if "kind" not in data:
            if type(default) in variants:
                return type(default)
            raise ConfigError(
                f"{_join(key, 'kind')} is required: one of {', '.join(_kinds_of(variants))} ({self.place})"
            )
        for cls in variants:
            if data["kind"] in _kinds_of([cls]):
                return cls
        kinds = _kinds_of(variants)
        raise ConfigError(
            f"{_join(key, 'kind')}={_show(data['kind'])} is none of {', '.join(kinds)} "
            f"({self.place}){_guess(str(data['kind']), kinds)}"
        )

    def _refuse_key(self, name: str, cls: type, key: str) -> typing.NoReturn:
        """Say where the unknown key `name` of `cls` at `key` belongs, or what it was probably meant to be."""
        siblings = _siblings_of(self.root, cls)
        owners = _kinds_of([c for c in siblings if c is not cls and name in _hints_of(c)])
        kind = _join(key, "kind")
        full = _join(key, name)
        if owners:
            raise ConfigError(
                f"{full} belongs to {' or '.join(f'{kind}={o}' for o in owners)}; "
                f"this run has {kind}={_kinds_of([cls])[0]} ({self.place})"
            )
        # Names are compared without their prefix, which would make any two keys of one part alike.
        near = difflib.get_close_matches(name, _hints_of(cls), n=1)
        places = {k.rsplit(".", 1)[-1]: k for k in _keys_of(self.root, self.prefix)}
        far = difflib.get_close_matches(name, places, n=1, cutoff=0.75)
        hint = ""
        if near or far:
            hint = f"; did you mean {_join(key, near[0]) if near else places[far[0]]}?"
        if not hint:
            hint = f"; {key or 'this part'} takes {', '.join(_hints_of(cls))}"
        raise ConfigError(f"unknown key {full} in {self.place}{hint}")


@functools.cache
def _adapter_of(hint: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(hint)


@functools.cache
def _hints_of(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _dataclasses_of(hint: Any) -> list[type]:
    """The dataclasses a hint offers: itself, or the members of a union, looking through Annotated; and `MoreVariants`."""
    more: list[type] = []
    if typing.get_origin(hint) is typing.Annotated:
        hint, *marks = typing.get_args(hint)
        more = [cls for mark in marks if isinstance(mark, MoreVariants) for cls in mark.find()]
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [*(o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), *more]


def _nested_of(hint: Any) -> list[type]:
    """Like `_dataclasses_of`, looking through tuple[...] and dict[...] too."""
    found = _dataclasses_of(hint)
    if not found and typing.get_origin(hint) in (tuple, dict):
        found = [cls for arg in typing.get_args(hint) for cls in _dataclasses_of(arg)]
    return found


def _siblings_of(root: type, cls: type) -> list[type]:
    """The variants that `cls` competes with in some field of the tree under `root`."""
    waiting, seen = [root], {root}
    while waiting:
        for hint in _hints_of(waiting.pop()).values():
            variants = _nested_of(hint)
            if cls in variants:
                return variants
            waiting += [v for v in variants if v not in seen]
            seen.update(variants)
    return []


def _keys_of(cls: type, prefix: str) -> Iterable[str]:
    for name, hint in _hints_of(cls).items():
        variants = _dataclasses_of(hint)
        if not variants:
            yield _join(prefix, name)
        for variant in variants:
            yield from _keys_of(variant, _join(prefix, name))


def _kinds_of(variants: list[type]) -> list[str]:
    hints = [_hints_of(cls).get("kind") for cls in variants]
    return [kind for hint in hints if typing.get_origin(hint) is Literal for kind in typing.get_args(hint)]


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _guess(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _rule_of(message: str) -> str:
    """pydantic's rule in the words of a YAML file."""
    rule = re.sub(r"^(?:Input|Value) (?:should be|is not) ", "", message)
    own = {
        "a valid integer": "a whole number",
        "a valid number": "a number",
        "a valid boolean": "true or false",
        "a valid string": "text (put it in quotes)",
        "a valid array": "a list, such as [1, 2]",
        "None": "null",
    }
    return own.get(rule, rule)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _name_of(value: Any) -> str:
    names = {
        dict: "mapping",
        str: "text",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
