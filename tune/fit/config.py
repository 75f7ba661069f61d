"""The settings of a fit, as they are stored in its folder."""

import difflib
import inspect
import os
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.config import RunConfig
from fsl_dist.dataset import pack as pack_images
from index.base.checksums import encode_yaml, read_yaml_text
from index.base.errors import ConfigError, RequestError
from index.base.files import exists, new_token, write_atomic
from index.base.object_cache import working_folder
from index.base.settings import (
    known_keys,
    parse_overrides,
    parse_yaml,
    settings,
    to_overrides,
    to_yaml,
    validate,
)
from tune.space import Value

FIT_FILE = "fit-config.yaml"
"""in a fit's folder: its settings"""

Metric = Literal["balanced", "acc", "mcr"]

# The same for all candidates, or the fit's own to choose.
_OWN_KEYS = {
    "run.dir": "dir names the fit's folder",
    "run.seed": "seed is the fit's own setting",
    "data.dataset": "the folder is the fit's first argument",
    "training.epochs": "minutes limits the training",
    "training.images": "minutes limits the training",
    "training.minutes": "minutes limits the whole fit",
    "training.patience": "minutes limits the training",
    "training.validate_every": "a candidate is validated at its end",
    "training.stop_metric": "metric selects the score by which candidates are compared",
}


@settings("")
class FitConfig:
    """One fit."""

    folder: str
    """of the images, one folder for each class, or of a packed data set"""
    minutes: Annotated[float, Field(gt=0)] = 10.0
    """from the call to the end, the report included"""
    final: Literal["auto"] | bool = "auto"
    """train the chosen recipe once more for most of the time. `auto`: yes, including the validation images that were
    held out of train. `true`: yes, including a val split of the data set too. `false`: no, the best run of the last
    round is the result"""
    seed: Annotated[int, Field(ge=0)] = 0
    """seed of the split, of the held-out images, and of all training"""
    metric: Metric = "balanced"
    """what candidates are compared by: accuracy, mean class recall, or the mean of both"""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """share of train that is held out for validation if the data set has no val split in addition to its test split"""
    pack: dict[str, Value] = field(default_factory=dict)
    """arguments of `pack` for a folder of images, such as `pack.table=labels.csv`"""
    settings: dict[str, Value] = field(default_factory=dict)
    """settings of a run that apply to all candidates, such as `backbone.name`"""

    def __post_init__(self) -> None:
        for key in self.settings:
            if key in _OWN_KEYS or key.startswith(("evaluation.", "workers.num")):
                why = _OWN_KEYS.get(key, "a fit scores its candidates itself and trains them on one worker")
                raise ConfigError(f"{key} is not a setting of a fit: {why}")
            if key not in known_keys(RunConfig):
                near = difflib.get_close_matches(key, sorted(known_keys(RunConfig)), n=1)
                raise ConfigError(
                    f"unknown key {key} in the settings of the fit"
                    + (f"; did you mean {near[0]}?" if near else "")
                )
        taken = set(inspect.signature(pack_images).parameters) - {
            "source",
            "out",
            "append",
            "seed",
            "progress",
        }
        for name in self.pack:
            if name not in taken:
                near = difflib.get_close_matches(name, sorted(taken), n=1)
                raise ConfigError(
                    f"pack.{name}: pack has no such argument"
                    + (f"; did you mean pack.{near[0]}?" if near else "")
                )

    @property
    def budget_s(self) -> float:
        """Seconds from the call to the end."""
        return 60 * self.minutes


def read_request(
    folder: str | os.PathLike[str],
    *,
    minutes: float,
    settings: Mapping[str, object] | list[str] | tuple[str, ...],
    final: bool | str,
    seed: int,
) -> FitConfig:
    """Return the settings of a fit. Raises ConfigError for a setting that is unknown or breaks a rule."""
    if not minutes > 0:
        raise RequestError(f"minutes={minutes:g} must be above 0: it is the time from the call to the report")
    own, run, packing = {}, {}, {}
    for key, value in _flatten(parse_overrides(to_overrides(settings))).items():
        if key in ("metric", "holdout"):
            own[key] = value
        elif key.startswith("pack."):
            packing[key.removeprefix("pack.")] = value
        else:
            run[key] = value
    for key in ("backbone.weights", "data.features"):
        if run.get(key):
            run[key] = str(working_folder(str(run[key])).expanduser().resolve())
    where = working_folder(os.fspath(folder)).expanduser().resolve()
    data = {"folder": str(where), "minutes": minutes, "final": final, "seed": seed, **own}
    return validate(FitConfig, {**data, "pack": packing, "settings": run}, "the fit's settings")


def read_stored(out: Path) -> FitConfig:
    """Read the settings of the fit in `out`. Raises ConfigError if there is none, VersionError if they are damaged."""
    if not exists(out / FIT_FILE):
        raise ConfigError(f"{out} is not a fit's folder: {FIT_FILE} is missing")
    text = read_yaml_text(out / FIT_FILE, root=out)
    return validate(FitConfig, parse_yaml(text, str(out / FIT_FILE)), str(out / FIT_FILE))


def write_request(out: Path, config: FitConfig) -> None:
    """Store the settings for a resume. Raises RequestError if another fit has begun in the folder meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".{FIT_FILE}.{new_token()}"
    write_atomic(unfinished, encode_yaml(to_yaml(config)))
    try:
        os.link(unfinished, out / FIT_FILE)  # fails for the second of two concurrent fits
    except FileExistsError:
        raise RequestError(
            f"dir={out}: another fit has just begun there (another dir starts a new one)"
        ) from None
    finally:
        unfinished.unlink()


def check_same(config: FitConfig, stored: FitConfig, out: Path) -> None:
    """Raise RequestError if the fit to resume has other settings."""
    for one in fields(FitConfig):
        before, now = getattr(stored, one.name), getattr(config, one.name)
        if before != now:
            raise RequestError(
                f"{one.name}={now} differs from the {before} of the fit in {out}; a fit is resumed as it was "
                "started (another dir starts a new one)"
            )


def _flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
