"""Methods by name, both built-in ones and those of other distributions.

A name refers to `module:settings class`. Built-in methods are in the table below; another distribution adds its own
as entry points of the group `fsl_dist.methods` (docs/how_to/new_method.md):

    [project.entry-points."fsl_dist.methods"]
    center_loss = "center_loss:CenterLossConfig"

A module is imported when a configuration selects its method.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint

from fsl_dist.errors import ConfigError
from fsl_dist.methods.method import MethodSettings
from fsl_dist.plugins import find_plugins, load_plugin, origin_of

GROUP = "fsl_dist.methods"

BUILT_IN = {
    "pcn": "fsl_dist.methods.pcn:PCNConfig",
    "deep_knn": "fsl_dist.methods.deep_knn:DeepKNNConfig",
    "batch_hard": "fsl_dist.methods.batch_hard:BatchHardConfig",
    "few_shot_nca": "fsl_dist.methods.few_shot_nca:FewShotNCAConfig",
    "cross_entropy": "fsl_dist.methods.cross_entropy:CrossEntropyConfig",
    "scatter": "fsl_dist.methods.scatter:ScatterConfig",
    "chai": "fsl_dist.methods.chai:CHAIConfig",
}


@functools.cache
def find_methods() -> Mapping[str, Callable[[], type[MethodSettings]]]:
    """Return all methods that a configuration can select, each with a function that imports its settings class.

    Raises ConfigError for an entry point with the name of a built-in method. The returned functions raise it if a class
    cannot be loaded or is not a settings class of that name.
    """
    points = {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    for name, point in find_plugins(GROUP).items():
        if name in BUILT_IN:
            raise ConfigError(
                f"method.kind={name} is built in; {origin_of(point)} may not replace it (give it another name)"
            )
        points[name] = point
    return {name: functools.partial(_load, point) for name, point in points.items()}


def _load(point: EntryPoint) -> type[MethodSettings]:
    found = load_plugin(point, "method.kind")
    place = f"method.kind={point.name}, from {origin_of(point)}"
    if not (
        isinstance(found, type) and issubclass(found, MethodSettings) and dataclasses.is_dataclass(found)
    ):
        raise ConfigError(
            f"{place}, must be a settings class that derives from fsl_dist.methods.MethodSettings"
        )
    if inspect.isabstract(found):
        raise ConfigError(f"{place}, needs a method build(self, context)")
    if typing.get_args(typing.get_type_hints(found).get("kind")) != (point.name,):
        raise ConfigError(f'{place}, needs the field kind: Literal["{point.name}"] = "{point.name}"')
    return found
