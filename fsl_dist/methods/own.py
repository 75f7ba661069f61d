"""Methods that other distributions bring: entry points of the group `fsl_dist.methods`, each a configuration class.

    [project.entry-points."fsl_dist.methods"]
    center_loss = "center_loss:CenterLossConfig"

The class is a frozen dataclass with `kind: Literal["center_loss"]` and a `build` that makes the method
(docs/new_method.md). They are looked up when a configuration is read, so commands that read none load none of them.
"""

import dataclasses
import functools
import importlib.metadata
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fsl_dist.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from fsl_dist.config import RunConfig
    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.selection import Selection
    from fsl_dist.methods.method import Method

GROUP = "fsl_dist.methods"


@runtime_checkable
class OwnMethodConfig(Protocol):
    """Settings of a method from elsewhere; its fields are keys of `method.`."""

    kind: str

    def build(
        self, config: "RunConfig", catalogue: "Catalogue", selection: "Selection", device: "torch.device"
    ) -> "Method":
        """The method over the training selection; RequestError where the data cannot serve it."""
        ...


@functools.cache
def own_methods() -> Mapping[str, Callable[[], type]]:
    """Kind → what loads its configuration class, for all installed distributions, by name.

    A loader raises ConfigError with the entry point's name and distribution where the class cannot be loaded or is no
    such class.
    """
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: functools.partial(_load, point) for point in points}


def _load(point: importlib.metadata.EntryPoint) -> type:
    brought_by = point.dist.name if point.dist else "an unnamed distribution"
    place = f"method.kind={point.name}, brought by {brought_by} as {point.value}"
    try:
        found = point.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{place}, cannot be loaded: {reason} (mend it, or uninstall it)") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and hasattr(found, "build")):
        raise ConfigError(f"{place}, must be a frozen dataclass with a method build")
    hint = typing.get_type_hints(found).get("kind")
    if typing.get_args(hint) != (point.name,):
        raise ConfigError(f'{place}, needs the field kind: Literal["{point.name}"] = "{point.name}"')
    return found
