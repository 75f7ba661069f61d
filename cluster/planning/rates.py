"""A rates file: how fast one machine does each part of a run.
`fsl-dist bench rates` measures one, `fsl-dist plan` reads it."""

import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from index.base.errors import ConfigError, RequestError
from index.base.settings import dump, parse_yaml, settings, to_yaml, validate

MEASURED, ASSUMED = "measured", "assumed"


@settings("")
class Rate:
    """The speed of one process in one activity, and the CPU time that it uses."""

    per_s: Annotated[float, Field(gt=0)]
    """units per second of one process that has the cores to itself"""
    core_ms: Annotated[float, Field(ge=0)] = 0.0
    """CPU time per unit, in milliseconds of one core, over all threads; 0: negligible"""
    source: str = MEASURED
    """`measured`, or where the number is from; what does not begin with `measured` counts as assumed"""

    @property
    def is_measured(self) -> bool:
        """Whether the number was measured."""
        return self.source.startswith(MEASURED)


@settings("")
class Machine:
    """The measured machine; a plan assumes that every worker is such a machine."""

    device: Literal["cpu", "cuda"]
    """where networks run"""
    cores: Annotated[int, Field(ge=1)]
    """CPU cores per machine"""
    memory_gb: Annotated[float, Field(gt=0)]
    """memory per machine, 10⁹ bytes"""
    cpu: str = ""
    gpu: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """of the libraries that do the work"""


@settings("")
class Work:
    """The measured work: a plan for another network or image size is refused."""

    backbone: str
    """`backbone.name`"""
    image_size: Annotated[int, Field(ge=1)]
    """`data.image_size`"""
    precision: Literal["float32", "bf16"]
    """of the forward pass"""
    embedding_dim: Annotated[int, Field(ge=1)]
    """numbers an embedding has"""
    gradient_bytes: Annotated[int, Field(ge=1)]
    """bytes of gradient that workers reduce per step"""
    image_bytes: Annotated[float, Field(gt=0)]
    """bytes of an image in the shards, the mean"""
    classes: Annotated[int, Field(ge=1)]
    """training classes; a classifier's gradient grows with them"""
    step_images: Annotated[int, Field(ge=1)]
    """images of the steps that were timed"""
    vectors: Annotated[int, Field(ge=1)]
    """vectors of the index that was built and searched"""
    index_kind: str
    """`index.kind` of it"""


@settings("")
class Rates:
    """The rates of one machine for one configuration. A missing one is only an error if a plan needs it."""

    date: str
    """day of the measurement, YYYY-MM-DD"""
    machine: Machine
    work: Work
    load: Rate | None = None
    """images read, decoded and augmented, by one process's loader alone"""
    train: Rate | None = None
    """images of training steps: forward, loss, backward, optimizer"""
    embed: Rate | None = None
    """images through a forward pass without gradient"""
    kmeans: Rate | None = None
    """embeddings that PCN's k-means clusters into prototypes; only `pcn` needs it"""
    index_write: Rate | None = None
    """vectors written as a shard of an index"""
    index_publish: Rate | None = None
    """vectors published, and trained and added where the kind does that; one process does it for all"""
    mining: Rate | None = None
    """distances computed in a search for the nearest of the same and of other classes, including exact re-ranking"""
    reduce: Rate | None = None
    """10⁶ bytes of gradient averaged by two processes of the machine"""
    read: Rate | None = None
    """10⁶ bytes of images read from the shards at random, in batches"""

    def needed(self, name: str, place: str, instead: str = "") -> Rate:
        """A rate by name; a RequestError for a missing one says how to measure it. `instead`:
        an option that replaces it."""
        rate = getattr(self, name)
        if rate is None:
            raise RequestError(
                f"{place} has no {name}, which this plan needs (`fsl-dist bench rates --config F --out RATES` "
                f"measures it{f'; {instead} replaces it' if instead else ''})"
            )
        return rate


def read_rates(path: Path) -> Rates:
    """Read a rates file, YAML or JSON. Raises ConfigError, one line, with the key, the value and the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--rates {path} cannot be read: {reason} (`fsl-dist bench rates --config F --out {path}` measures "
            "this machine)"
        ) from error
    return validate(Rates, parse_yaml(text, str(path)), str(path))


def render_rates(rates: Rates, *, as_json: bool = False) -> str:
    """The text of a rates file, which `read_rates` reads back to equal rates;
    rates that were not measured are omitted."""
    plain = {name: value for name, value in dump(rates).items() if value is not None}
    return json.dumps(plain, indent=1) + "\n" if as_json else to_yaml(plain)
