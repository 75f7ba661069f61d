"""Plug-ins of other distributions, found by entry points: methods, backbones and metrics."""

import functools
import importlib.metadata
from importlib.metadata import EntryPoint
from typing import Any

from fsl_dist.errors import ConfigError


@functools.cache
def find_plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of `group` by name; none of them is imported."""
    points = sorted(importlib.metadata.entry_points(group=group), key=lambda point: point.name)
    return {point.name: point for point in points}


@functools.cache
def load_plugin(point: EntryPoint, key: str) -> Any:
    """Import the object of an entry point. key: the setting that selects it; raises ConfigError if the import fails."""
    try:
        return point.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(
            f"{key}={point.name}, from {origin_of(point)}, cannot be loaded: {reason} (fix it, or uninstall it)"
        ) from error


def origin_of(point: EntryPoint) -> str:
    """The object and the distribution of an entry point, for errors."""
    return f"{point.value} of {point.dist.name if point.dist else 'fsl-dist'}"
