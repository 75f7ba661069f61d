"""The space of a sweep: dotted keys of a run, each with its possible values, and points drawn from it.

A point is a function of (seed, number) or of the trials before it, never of hidden state: a resumed sweep continues
with the points of an uninterrupted one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from fsl_dist.seeding import generator
from index.base.errors import ConfigError

Scalar = bool | int | float | str
Value = Scalar | tuple[bool | int | float | str, ...]
"""of a setting: a number, a text, true or false, or a list of them"""

Point = dict[str, Value]
"""values by dotted key"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """The possible values of one key: exactly one of the fields is set (see `check`)."""

    choice: tuple[Value, ...] = ()
    """one of these, drawn evenly"""
    grid: tuple[Value, ...] = ()
    """each value as often as the others, in all combinations with other grids"""
    uniform: tuple[float, ...] = ()
    """[low, high]: any number between the two"""
    loguniform: tuple[float, ...] = ()
    """[low, high], both above 0: any number between, each factor of ten as likely as another"""
    randint: tuple[int, ...] = ()
    """[low, high]: a whole number, both ends among them"""

    def check(self, key: str) -> None:
        """Raise ConfigError, with the knob's key, for invalid values."""
        named = [field.name for field in fields(self) if getattr(self, field.name)]
        if len(named) != 1:
            raise ConfigError(
                f"space.{key} needs exactly one of {', '.join(field.name for field in fields(self))}, with "
                f"values; it has {' and '.join(named) or 'none'}"
            )
        kind, values = named[0], getattr(self, named[0])
        if kind in ("choice", "grid"):
            if len({repr(value) for value in values}) < len(values):
                raise ConfigError(f"space.{key}: {kind}={list(values)} names a value twice")
            return
        if len(values) != 2 or not all(map(math.isfinite, values)) or not values[0] < values[1]:
            raise ConfigError(f"space.{key}: {kind}={list(values)} must be [low, high], low below high")
        if kind == "loguniform" and values[0] <= 0:
            raise ConfigError(
                f"space.{key}: loguniform={list(values)} must be above 0 (uniform accepts other numbers)"
            )

    @property
    def options(self) -> tuple[Value, ...]:
        """The values of a choice or a grid; none of a range."""
        return self.choice or self.grid

    def place(self, share: float) -> Value:
        """The value at `share` (0 to below 1) of the knob's values, in their order."""
        if self.options:
            return self.options[int(share * len(self.options))]
        if self.randint:
            low, high = self.randint
            return low + int(share * (high - low + 1))
        if self.uniform:
            low_, high_ = self.uniform
            return low_ + share * (high_ - low_)
        low_, high_ = (math.log(end) for end in self.loguniform)
        return math.exp(low_ + share * (high_ - low_))


def draw_point(space: Mapping[str, Knob], seed: int, number: int) -> Point:
    """Point `number` (0, 1, …) of a random search: grids use their next combination, other knobs are drawn.

    The value of a knob is a function of (seed, number, key): additional knobs in the space do not change it.
    """
    point = grid_point({key: knob for key, knob in space.items() if knob.grid}, number)
    for key, knob in space.items():
        if not knob.grid:
            point[key] = knob.place(float(generator(seed, f"sweep {key}", number).random()))
    return {key: point[key] for key in space}


def grid_size(space: Mapping[str, Knob]) -> int:
    """Number of combinations of the options of all knobs."""
    return math.prod(len(knob.options) for knob in space.values())


def grid_point(space: Mapping[str, Knob], number: int) -> Point:
    """Combination `number` of the knobs' options, with the last key changing fastest; cyclic."""
    if not space:
        return {}
    shape = [len(knob.options) for knob in space.values()]
    places = np.unravel_index(number % math.prod(shape), shape)
    return {key: knob.options[int(place)] for (key, knob), place in zip(space.items(), places, strict=True)}


def nested(point: Mapping[str, Value]) -> dict:
    """A point as the mappings of a YAML file: {"method.margin": 1} → {"method": {"margin": 1}}."""
    tree: dict = {}
    for key, value in point.items():
        *parts, last = key.split(".")
        level = tree
        for part in parts:
            level = level.setdefault(part, {})
        level[last] = list(value) if isinstance(value, tuple) else value
    return tree


def show_value(value: object) -> str:
    """Format a value as on a command line: numbers with four digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(show_value, value)) + "]"
    return str(value)


def show_point(point: Mapping[str, Value]) -> str:
    """Format a point in one line, or return the name of the base's own point."""
    return " ".join(f"{key}={show_value(value)}" for key, value in point.items()) or "the base itself"
