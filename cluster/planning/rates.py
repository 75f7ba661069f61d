"""A rates file: how fast one machine does each part of a run. `fsl-dist bench rates` measures one, `fsl-dist plan` reads it."""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from index.base.errors import ConfigError, RequestError
from index.base.settings import dump, parse_yaml, to_yaml, validate

MEASURED, ASSUMED = "measured", "assumed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How fast one process does one thing, and what of the machine's cores that takes."""

    per_s: float
    """units a second of one process with the cores to itself, above 0"""
    core_ms: float = 0.0
    """CPU time a unit, in thousandths of a second of one core, over all threads; 0 = no core to speak of"""
    source: str = MEASURED
    """`measured`, or where the number is from; what does not begin with `measured` counts as assumed"""

    def __post_init__(self) -> None:
        if not 0 < self.per_s < math.inf:
            raise ValueError(f"per_s={self.per_s} must be a finite number above 0")
        if not 0 <= self.core_ms < math.inf:
            raise ValueError(f"core_ms={self.core_ms} must be a finite number, 0 or more")

    @property
    def is_measured(self) -> bool:
        """Whether the number was measured."""
        return self.source.startswith(MEASURED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the rates belong to; a plan takes every worker for such a machine."""

    device: Literal["cpu", "cuda"]
    """where networks run"""
    cores: int
    """CPU cores of one machine, at least 1"""
    memory_gb: float
    """memory of one machine, 10⁹ bytes, above 0"""
    cpu: str = ""
    gpu: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """of the libraries that do the work"""

    def __post_init__(self) -> None:
        if self.cores < 1:
            raise ValueError(f"cores={self.cores} must be at least 1")
        if not 0 < self.memory_gb < math.inf:
            raise ValueError(f"memory_gb={self.memory_gb} must be a finite number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What was done when the rates were measured: a plan is refused for another network or image size."""

    backbone: str
    """`backbone.name`"""
    image_size: int
    """`data.image_size`, at least 1"""
    precision: Literal["float32", "bf16"]
    """of the forward pass"""
    embedding_dim: int
    """numbers an embedding has, at least 1"""
    gradient_bytes: int
    """bytes of gradient that workers reduce in a step, at least 1"""
    image_bytes: float
    """bytes of an image in the shards, the mean, above 0"""
    classes: int
    """training classes; a classifier's gradient grows with them"""
    step_images: int
    """images of the steps that were timed, at least 1"""
    vectors: int
    """vectors of the index that was built and searched, at least 1"""
    index_kind: str
    """`index.kind` of it"""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and not 0 < value < math.inf:
                raise ValueError(f"{item.name}={value} must be a finite number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The rates of one machine for one configuration. One that is missing is only an error where a plan needs it."""

    date: str
    """day of the measurement, YYYY-MM-DD"""
    machine: Machine
    work: Work
    load: Rate | None = None
    """images read, decoded and augmented, by one process's loader alone"""
    train: Rate | None = None
    """images through a step: forward, loss, backward, optimizer"""
    embed: Rate | None = None
    """images through a forward pass without gradient"""
    kmeans: Rate | None = None
    """embeddings that PCN's k-means makes prototypes of; `pcn` alone needs it"""
    index_write: Rate | None = None
    """vectors written as a shard of an index"""
    index_publish: Rate | None = None
    """vectors published, and trained and added where the kind does that; one process does it for all"""
    mining: Rate | None = None
    """distances computed in a search for the nearest of the same and of other classes, judging included"""
    reduce: Rate | None = None
    """10⁶ bytes of gradient averaged by two processes of the machine"""
    read: Rate | None = None
    """10⁶ bytes of images read from the shards at random, in batches"""

    def needed(self, name: str, place: str, instead: str = "") -> Rate:
        """A rate by name; RequestError that says how to measure it where the file has none. `instead`: an option that does."""
        rate = getattr(self, name)
        if rate is None:
            raise RequestError(
                f"{place} has no {name}, which this plan needs (`fsl-dist bench rates --config F --out RATES` measures it"
                f"{f'; {instead} replaces it' if instead else ''})"
            )
        return rate


def read_rates(path: Path) -> Rates:
    """Read a rates file, YAML or JSON. Raises ConfigError, one line, with the key, the value and the place."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--rates {path} cannot be read: {reason} (`fsl-dist bench rates --config F --out {path}` measures this machine)"
        ) from error
    return validate(Rates, parse_yaml(text, str(path)), str(path))


def render_rates(rates: Rates, *, as_json: bool = False) -> str:
    """The text of a rates file, which `read_rates` reads back to equal rates; what was not measured is left out."""
    plain = {name: value for name, value in dump(rates).items() if value is not None}
    return json.dumps(plain, indent=1) + "\n" if as_json else to_yaml(plain)
