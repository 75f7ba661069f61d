"""Validation of settings by the types of their fields, with each rule described in one line.

pydantic validates strictly: `Annotated[int, Field(ge=2)]`, `Literal[...]`, `tuple[...]`, `dict[...]` and unions of
them. A list is accepted for a tuple, text for a path and an int for a float; `true` is not a number, and neither are
nan and inf. The value of a field that contains another settings class must be an instance of that class.
"""

import difflib
import functools
import json
import operator
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pydantic
import pydantic_core
import typing_extensions
from pydantic_core import core_schema

from index.base.errors import ConfigError

_PLAIN = (bool, int, float, str, bytes, type(None), Any)
_BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "multiple_of": "a multiple of {}",
    "min_length": "of length {} or more",
    "max_length": "of length {} or less",
    "pattern": "text that matches {}",
}
_RULES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text (put it in quotes)",
    "path_type": "a path (put it in quotes)",
    "tuple_type": "a list, such as [1, 2]",
    "list_type": "a list, such as [1, 2]",
    "dict_type": "a mapping of keys to values",
    "none_required": "null",
    "missing": "a longer list",
}


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Field → type, for the fields that the constructor of the dataclass `cls` accepts."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def check_values(cls: type, values: dict[str, Any], part: str, place: str) -> dict[str, Any]:
    """Validate `values` (field → value, not necessarily for every field) and convert them to the field types of `cls`.

    Raises ConfigError about the first invalid value, with its key in `part`, the rule, the value and `place`.
    """
    try:
        return typing.cast(dict[str, Any], _validator_of(cls).validate_python(values))
    except pydantic.ValidationError as error:
        problems = error.errors(include_url=False)
    where = _key_of(problems[0], values, part)
    said = [problem for problem in problems if _key_of(problem, values, part) == where]
    rules = dict.fromkeys(_rule_of(problem, hints_of(cls)) for problem in said)
    shown, choices = said[0]["input"], [name for problem in said for name in _choices_of(problem)]
    raise ConfigError(
        f"{where}={show(shown)} must be {' or '.join(rules)}{f' ({place})' if place else ''}"
        f"{guess(shown, choices) if isinstance(shown, str) else ''}"
    )


def range_of(hint: Any) -> str:
    """The bounds in a type in words, such as "at least 0 and below 1"; empty without bounds."""
    return _say(next(_bounds_in(hint), {}))


def guess(name: str, names: list[str]) -> str:
    """The end of an error text that proposes the nearest of `names`; empty if none is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def join_key(part: str, name: str) -> str:
    """The dotted key of the field `name` in `part`."""
    return f"{part}.{name}" if part else name


def show(value: Any) -> str:
    """Format a value as in YAML, cut at 80 characters."""
    try:
        text = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


@functools.cache
def _validator_of(cls: type) -> pydantic.TypeAdapter[Any]:
    # A mapping in which every part may be missing: a file sets only some of the fields.
    typed_dict: Any = typing_extensions.TypedDict
    values = typed_dict(cls.__name__, {n: _judged(hint) for n, hint in hints_of(cls).items()}, total=False)
    values.__pydantic_config__ = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    return pydantic.TypeAdapter(values)


def _judged(hint: Any) -> Any:
    """The type of a field in the form that pydantic validates."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return Annotated[(_judged(args[0]), *args[1:])]
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_judged, args))
    if origin is Literal and not any(isinstance(arg, bool) for arg in args):
        return Annotated[hint, pydantic.BeforeValidator(functools.partial(_refuse_like_numbers, args))]
    if origin is tuple:
        judged = types.GenericAlias(tuple, tuple(arg if arg is Ellipsis else _judged(arg) for arg in args))
        return Annotated[judged, pydantic.BeforeValidator(_tuple_of_list)]
    if origin in (list, dict):
        return origin[tuple(_judged(arg) for arg in args)]
    if hint is Path:
        return Annotated[Path, pydantic.Strict(False)]
    if isinstance(hint, type) and hint not in _PLAIN:
        schema = core_schema.is_instance_schema(hint)
        return Annotated[Any, pydantic.GetPydanticSchema(lambda *_: schema)]
    return hint


def _refuse_like_numbers(choices: tuple[Any, ...], value: Any) -> Any:
    """Refuse True and 1.0 for Literal[1], which pydantic accepts."""
    if isinstance(value, bool | float):
        expected = ", ".join(map(repr, choices[:-1])) + " or " * (len(choices) > 1) + repr(choices[-1])
        raise pydantic_core.PydanticCustomError("literal_error", "{expected}", {"expected": expected})
    return value


def _tuple_of_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _key_of(problem: Any, values: Mapping[str, Any], part: str) -> str:
    """The dotted key that a problem is about: `k_p[1]`, `named.a`; members of unions are not part of it."""
    name, *path = problem["loc"]
    key, value = join_key(part, name), values[name]
    for step in path:
        if isinstance(value, list | tuple) and isinstance(step, int) and step < len(value):
            key, value = f"{key}[{step}]", value[step]
        elif isinstance(value, Mapping) and step in value:
            key, value = f"{key}.{step}", value[step]
    return key


def _rule_of(problem: Any, hints: Mapping[str, Any]) -> str:
    """What a value must be, in words for a user; a range is given completely."""
    kind, context = problem["type"], problem.get("ctx", {})
    broken = {name: context[name] for name in _BOUNDS if name in context}
    if broken:
        whole = (b for b in _bounds_in(hints[problem["loc"][0]]) if broken.items() <= b.items())
        return _say(next(whole, broken))
    if kind == "literal_error":
        expected = str(context["expected"])
        return expected if "''" in expected else expected.replace("'", "")
    if kind == "is_instance_of":
        return f"an instance of {context['class']}"
    said = re.sub(r"^(?:Input should be|Value error,) ", "", problem["msg"])
    return _RULES.get(kind, said)


def _choices_of(problem: Any) -> list[str]:
    is_choice = problem["type"] == "literal_error"
    return re.findall(r"'([^']+)'", problem["ctx"]["expected"]) if is_choice else []


def _bounds_in(hint: Any) -> Iterator[dict[str, Any]]:
    """The bounds of every type within a type, the outermost first."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        marks = [m for mark in args[1:] for m in getattr(mark, "metadata", [mark])]
        found = {name: getattr(mark, name, None) for mark in marks for name in _BOUNDS if hasattr(mark, name)}
        bounds = {name: limit for name, limit in found.items() if limit is not None}
        if bounds:
            yield bounds
        args = args[:1]
    if typing.get_origin(hint) is not Literal:
        for arg in args:
            yield from _bounds_in(arg)


def _say(bounds: Mapping[str, Any]) -> str:
    return " and ".join(_BOUNDS[name].format(limit) for name, limit in bounds.items())
