"""Read and write a sweep's YAML: the user's file, and the file in a sweep's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fsl_dist.config import RunConfig, read_config, resolve_paths
from fsl_dist.shipped import find_config
from index.base.checksums import read_yaml_text
from index.base.errors import ConfigError, RequestError
from index.base.files import exists
from index.base.object_cache import bring, on_disk, with_addresses, working_folder
from index.base.settings import dump, lay_over, merge, parse_overrides, parse_yaml, to_yaml, validate
from tune.index_sweeps.config import IndexSweepConfig
from tune.records import is_record
from tune.space import Knob
from tune.sweep_settings import SweepSettings
from tune.sweeps.config import SweepConfig

AnySweep = SweepConfig | IndexSweepConfig

SWEEP_FILE = "sweep-config.yaml"
"""in a sweep's folder; another name than people give the file that they start a sweep with"""

# Keys that sweeps of runs have and those of indexes have not, with the reason.
_OF_RUNS = {
    "base": "index selects what these trials vary (leave one of the two out)",
    "settings": "index itself contains what its trials share",
    "scheduler": "a build is measured once and at its end, so there is nothing to stop early",
    "resources": "builds and searches use the threads of OMP_NUM_THREADS, or all cores",
    "minutes": "a build that is cut short measures nothing; hours limits when another one starts",
    "trial_timeout_s": "builds run in the sweep's own process, which cannot end itself",
    "concurrency": "indexes are built and measured one at a time, since two would disturb each other's ms",
}


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> AnySweep:
    """The sweep of a YAML file with `key=value` over it: keys of a sweep, or of the run that it varies.

    A file with `index` in place of `base` is a sweep of indexes. Under `settings` the file itself lays run keys over
    its base. Raises ConfigError with the key, the rule, the value and the file.
    """
    said = f"{path} and the command line" if overrides else str(path)
    return read_sweep(_read_sweep(path), overrides, str(path), said)


def read_sweep(raw: dict[str, Any], overrides: Sequence[str], place: str, said: str = "") -> AnySweep:
    """`load_sweep` for the content of a file. place: its origin; said: the origin of the content and the overrides."""
    over = parse_overrides(overrides)
    gate = _gate_indexes if "index" in raw else _gate_runs
    config: AnySweep = gate(raw, over, place, said or place)
    folder = str(working_folder(config.dir).expanduser().resolve()) if config.dir else ""
    return replace(config, dir=folder)


def _gate_runs(raw: dict[str, Any], over: Mapping[str, Any], place: str, said: str) -> SweepConfig:
    settings = raw.pop("settings", {})
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings must be a mapping of keys to values ({place})")
    own = {f.name for f in fields(SweepConfig)}
    parts = {f.name for f in fields(RunConfig)} - own
    raw = lay_over(SweepConfig, raw, {key: value for key, value in over.items() if key not in parts}, place)
    raw["base"] = _read_base(raw.get("base"), place)
    for laid in (_nest(settings), {key: value for key, value in over.items() if key in parts}):
        raw["base"] = lay_over(RunConfig, raw["base"], laid, place)
    _flatten(raw, place)
    if isinstance(raw.get("scheduler"), str):
        raw["scheduler"] = {"kind": raw["scheduler"]}
    return _build(raw, said)


def parse_sweep(text: str, place: str) -> SweepConfig:
    """The sweep of runs that `render_sweep` wrote."""
    return _build(parse_yaml(text, place), place)


def _build(raw: Mapping[str, Any], place: str) -> SweepConfig:
    search = raw.get("search")
    if isinstance(search, Mapping) and "class" in search:  # no name for a field in Python
        search = {"class_" if key == "class" else key: value for key, value in search.items()}
        raw = {**raw, "search": search}
    try:
        config = validate(SweepConfig, raw, place)
    except ConfigError as error:
        text = str(error).replace("search.class_", "search.class")
        shown = text.replace("an instance of ImportedSearch", '{kind: import, class: "package.module:Class"}')
        raise ConfigError(shown) from error.__cause__
    return replace(config, base=resolve_paths(config.base))


def _gate_indexes(raw: dict[str, Any], over: Mapping[str, Any], place: str, said: str) -> IndexSweepConfig:
    raw = lay_over(IndexSweepConfig, raw, over, place)
    on_disk(str(raw.get("dir") or ""), "a sweep of indexes")
    for name, why in _OF_RUNS.items():
        if name in raw:
            raise ConfigError(f"{name} belongs to sweeps of runs: {why} ({said})")
    _flatten(raw, place, prefix="index.")
    config = validate(IndexSweepConfig, raw, said)
    return replace(config, index=config.index.with_whole_paths())


def _flatten(raw: dict[str, Any], place: str, prefix: str = "") -> None:
    """Give space and evaluation the keys that they are known by, however they were written."""
    flat = _flatten_space(raw.get("space") or {}, place)
    raw["space"] = {key.removeprefix(prefix): value for key, value in flat}
    raw["evaluation"] = {
        str(name).removeprefix("evaluation."): values
        for name, values in (raw.get("evaluation") or {}).items()
    }


def inline_sweep(path: Path) -> str:
    """The YAML of a sweep including its base, for a job that cannot read the base's file; paths are not changed."""
    raw = _read_sweep(path)
    return to_yaml(raw if "index" in raw else {**raw, "base": _read_base(raw.get("base"), str(path))})


def find_stored(config: AnySweep) -> AnySweep | None:
    """The sweep in `config.dir`, if it was started as `config`; None if there is none.

    Raises RequestError naming the first key that would make it another sweep.
    """
    if not config.dir or not exists(Path(config.dir) / SWEEP_FILE):
        return None
    stored = load_stored(Path(config.dir))
    if isinstance(config, SweepConfig) and isinstance(stored, SweepConfig):
        data = replace(config.base.data, version=config.base.data.version or stored.base.data.version)
        config = replace(config, base=replace(config.base, data=data))
    before, now = (_by_key(dump(sweep)) for sweep in (stored, config))
    for key in now | before:
        if now.get(key) != before.get(key):
            raise RequestError(
                f"{key} differs from that of the sweep in dir={config.dir}; a sweep resumes with the settings of "
                "its start (another dir starts a new one)"
            )
    return stored


def _by_key(tree: dict[str, Any]) -> dict[str, Any]:
    """The sweep's keys, and those of its varied object prefixed by its name."""
    inner = {
        f"{part}.{key}": value for part in ("base", "index") for key, value in tree.get(part, {}).items()
    }
    return {key: value for key, value in tree.items() if key not in ("base", "index")} | inner


def load_stored(folder: Path) -> AnySweep:
    """The sweep in a folder; raises ConfigError if there is none."""
    path = folder / SWEEP_FILE
    bring(folder, wanted=is_record)
    if not exists(path):
        raise ConfigError(f"{folder} is not a sweep folder: {SWEEP_FILE} is missing")
    raw = parse_yaml(read_yaml_text(path, root=folder), str(path))
    config: AnySweep = (
        validate(IndexSweepConfig, raw, str(path)) if "index" in raw else _build(raw, str(path))
    )
    return replace(config, dir=str(folder.resolve()))


def check_new(config: SweepSettings) -> Path:
    """The folder of a new sweep; RequestError if it is not set, or contains a sweep or a run."""
    if not config.dir:
        raise RequestError("dir is empty; name a folder for the sweep: dir=sweeps/first")
    folder = Path(config.dir)
    if exists(folder / SWEEP_FILE):
        raise RequestError(
            f"dir={config.dir} already contains a sweep (resume=True continues it; another dir starts a new one)"
        )
    if exists(folder / "config.yaml"):
        raise RequestError(f"dir={config.dir} contains a run (another dir starts a sweep)")
    return folder


def render_sweep(config: SweepSettings) -> str:
    """The sweep as YAML that `validate` reads back to an equal one, without the kinds of knob that are empty."""
    tree = dump(config)
    tree["space"] = {
        key: {kind: values for kind, values in knob.items() if values} for key, knob in tree["space"].items()
    }
    if isinstance(tree["search"], dict):
        tree["search"]["class"] = tree["search"].pop("class_")
    return with_addresses(to_yaml(tree))


def _read_sweep(path: Path) -> dict[str, Any]:
    path = find_config(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={path} cannot be read: {error}") from error
    return parse_yaml(text, str(path))


def _read_base(base: object, place: str) -> dict[str, Any]:
    if isinstance(base, Mapping):
        return dict(base)
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"base must name a run's YAML file, or be its mapping; a sweep of indexes has index in its place ({place})"
        )
    return read_config(Path(base).expanduser())[0]


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert {"training.epochs": 2} to {"training": {"epochs": 2}}; nested mappings are kept."""
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
