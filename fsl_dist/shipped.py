"""Configurations that come with the package, known by their names:
`own-images`, `omniglot/pcn`, `sweeps/pcn-omniglot`."""

import difflib
import os
from pathlib import Path

from fsl_dist.errors import ConfigError

EXPERIMENTS = Path(__file__).parent / "experiments"
"""the shipped YAML files, one folder for each data set, and `tables/` and `sweeps/`"""


def find_config(named: str | Path, folder: Path = Path()) -> Path:
    """Find the file of a configuration: a path, relative to `folder`, or the name of a shipped configuration.

    Raises ConfigError, with the nearest names, if there is neither.
    """
    path = folder / named
    shipped = EXPERIMENTS / f"{os.fspath(named).removesuffix('.yaml')}.yaml"
    if path.is_file() or not shipped.is_file():
        if not path.exists():
            near = difflib.get_close_matches(
                str(named).removesuffix(".yaml"), list_configs(), n=3, cutoff=0.5
            )
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"{named} is neither a YAML file nor the name of a shipped configuration{hint}")
        return path
    return shipped


def shown_name(path: Path) -> str:
    """The name of a configuration in errors: its own if it is shipped, otherwise its path."""
    return _name_of(path) if path.is_relative_to(EXPERIMENTS) else str(path)


def _name_of(path: Path) -> str:
    return path.relative_to(EXPERIMENTS).with_suffix("").as_posix()


def list_configs() -> list[str]:
    """List the names of all shipped configurations of runs and sweeps;
    `_base.yaml`, the shared part of a folder, is not one.

    Returns:
        Sorted names, such as `own-images` or `omniglot/pcn`; `train` accepts those of runs.
    """
    names = map(_name_of, EXPERIMENTS.rglob("[!_]*.yaml"))
    return sorted(name for name in names if not name.startswith("tables/") and not name.endswith("/family"))
