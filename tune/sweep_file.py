"""Reading and writing a sweep's YAML: the file that people write, and the one that lies in a sweep's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fsl_dist.config import RunConfig, resolve_paths
from index.errors import ConfigError
from index.gate import dump, merge, parse_overrides, parse_yaml, to_yaml, validate
from index.mirror import on_disk
from tune.config import SweepConfig
from tune.space import Knob

SWEEP_FILE = "sweep-config.yaml"
"""in a sweep's folder; another name than people give the file that they start a sweep with"""


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep of a YAML file with `key=value` over it: keys of a sweep, or of the run that it varies.

    Under `settings` the file itself lays run keys over its base. Raises ConfigError with the key, the rule, the value and the
    place.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {error}") from error
    raw, place = parse_yaml(text, str(path)), str(path)
    settings = raw.pop("settings", {})
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings must be a mapping of keys to values ({place})")
    over = parse_overrides(overrides)
    own = {f.name for f in fields(SweepConfig)}
    parts = {f.name for f in fields(RunConfig)} - own
    raw = merge(raw, {key: value for key, value in over.items() if key not in parts})
    raw["base"] = _read_base(raw.get("base"), place)
    for laid in (_nest(settings), {key: value for key, value in over.items() if key in parts}):
        raw["base"] = merge(raw["base"], laid)
    raw["space"] = {
        key: value for part in [raw.get("space") or {}] for key, value in _flatten_space(part, place)
    }
    raw["evaluation"] = {
        str(name).removeprefix("evaluation."): values
        for name, values in (raw.get("evaluation") or {}).items()
    }
    if isinstance(raw.get("scheduler"), str):
        raw["scheduler"] = {"kind": raw["scheduler"]}
    config = validate(SweepConfig, raw, f"{place} and the command line" if overrides else place)
    base = resolve_paths(config.base)
    folder = str(on_disk(config.dir, "sweep").expanduser().resolve()) if config.dir else ""
    return replace(config, base=base, dir=folder)


def load_stored(folder: Path) -> SweepConfig:
    """The sweep that lies in a folder; ConfigError where there is none."""
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise ConfigError(f"{folder} is no sweep: it has no {SWEEP_FILE} (fsl-dist sweep run writes one)")
    config = validate(SweepConfig, parse_yaml(path.read_text("utf-8"), str(path)), str(path))
    return replace(config, dir=str(folder.resolve()))


def render_sweep(config: SweepConfig) -> str:
    """The sweep as YAML that `validate` reads back to an equal one, without the kinds of knob that are empty."""
    tree = dump(config)
    tree["space"] = {
        key: {kind: values for kind, values in knob.items() if values} for key, knob in tree["space"].items()
    }
    return to_yaml(tree)


def _read_base(base: object, place: str) -> dict[str, Any]:
    if isinstance(base, Mapping):
        return dict(base)
    if not isinstance(base, str) or not base:
        raise ConfigError(f"base must name a run's YAML file, or be its mapping ({place})")
    path = Path(base).expanduser()
    if not path.is_file():
        raise ConfigError(f"base={base} is no file; paths start from the working folder ({place})")
    return parse_yaml(path.read_text("utf-8"), str(path))


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"training.epochs": 2} and {"training": {"epochs": 2}} alike."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        inner = _nest(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            inner = {part: inner}
        tree = merge(tree, inner)
    return tree


def _flatten_space(space: object, place: str, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted key → knob, whether the keys were written dotted or nested."""
    kinds = {f.name for f in fields(Knob)}
    if not isinstance(space, Mapping):
        raise ConfigError(f"space{'.' * bool(prefix)}{prefix} must be a mapping of keys to knobs ({place})")
    flat = []
    for name, value in space.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping) and value and not kinds.intersection(value):
            flat += _flatten_space(value, place, key)
        elif not isinstance(value, Mapping):
            raise ConfigError(
                f"space.{key} must be a knob, such as {{choice: [1, 2]}} or {{loguniform: [0.1, 10]}} ({place})"
            )
        else:
            flat.append((key, value))
    return flat
