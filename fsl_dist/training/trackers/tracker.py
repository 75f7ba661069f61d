"""The interface of a tracker, and the information about a run that it gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Fact = bool | int | float | str
Ending = Literal["finished", "failed", "killed"]
Kind = Literal["mlflow", "wandb"]

PROJECT = "fsl-dist"
"""MLflow experiment and W&B project where the trackers' environment variables name none"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """A run as its trackers know it."""

    folder: Path
    """absolute; its `trackers.json` contains the identifiers with which a resumed run continues"""
    name: str
    """shown in the tracker's table"""
    config: Mapping[str, object] = field(default_factory=dict)
    """resolved settings, nested"""
    sweep: Path | None = None
    """folder of the sweep that the run is a trial of, or the sweep's own entry"""

    @property
    def group(self) -> str:
        """Name of the sweep; empty for a single run."""
        return self.sweep.name if self.sweep else ""

    @property
    def is_trial(self) -> bool:
        """Whether this is one trial of a sweep."""
        return self.sweep is not None and self.sweep != self.folder


class Tracker(Protocol):
    """One run at a tracker, open for writing. Every method may raise anything;
    the caller turns that into one warning."""

    id: str
    """the tracker's own identifier of the run"""
    address: str
    """where a person can view it"""

    def log(self, lines: Sequence[Mapping[str, float]]) -> None:
        """Record lines of a metrics file: `step`, `epoch` and values by name."""
        ...

    def end(self, facts: Mapping[str, Fact], ending: Ending) -> None:
        """Record the run's results and that it ended."""
        ...


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted key → value."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
