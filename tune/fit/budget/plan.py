"""OUT/plan.json: measurements and decisions of a fit before its first round. A resumed fit follows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from index.base.files import exists
from index.base.record_files import read_record, write_record
from tune.fit.budget.planning import Overheads, Rates, RoundPlan
from tune.fit.recipes import Recipe, list_recipes
from tune.fit.records import ProfileRecord
from tune.space import Point, Value

PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class FitPlan:
    """The measurements and decisions."""

    profile: ProfileRecord
    backbone: Point
    """the pretrained network: its settings"""
    has_weights: bool
    pretrained: Literal["trained", "frozen", "unused"] = "trained"
    """what becomes of the pretrained network where small networks from scratch are tried too: the time may not
    suffice to train it, or to embed all images with it"""
    size: int
    """side of the images that the pretrained network sees, pixels"""
    scratch_size: int
    """side of the images that a small network from scratch sees, pixels"""
    batch_size: int
    freeze: int
    """number of frozen leading layers; 0: the whole network is trained"""
    slots: int
    """concurrent trials"""
    cpus: int
    """CPU cores of a trial"""
    gpus: float
    joins: bool
    rates: Rates | None = None
    """at `size`; None before they were measured"""
    rounds: tuple[RoundPlan, ...] = ()
    overheads: Overheads = field(default_factory=lambda: Overheads.after_start(0.0))
    trains: bool = True
    """whether the budget suffices for one epoch"""
    rounds_end_s: float = 0.0
    """seconds of the budget that are used when the rounds end, as they were planned"""
    notes: tuple[str, ...] = field(default=())

    def recipes(self, given: Mapping[str, Value]) -> list[Recipe]:
        """The recipes to train, in order of their prior; given: settings for all candidates."""
        found = list_recipes(self.profile, has_weights=self.has_weights, given=given)
        if self.pretrained == "trained":
            return found
        return [one for one in found if one.family == "scratch"]

    def frozen_recipe(self, given: Mapping[str, Value]) -> Recipe:
        """The recipe whose network is scored without training: the pretrained one if there is one."""
        found = list_recipes(self.profile, has_weights=self.has_weights, given=given)
        first = "scratch" if self.pretrained == "unused" else "pretrained"
        return next((one for one in found if one.family == first), found[0])

    def write(self, out: Path) -> None:
        """Write it into the fit's folder."""
        write_record(out / PLAN_FILE, self)

    @classmethod
    def read(cls, out: Path) -> Self | None:
        """Read the plan of a fit; None if there is none yet. Raises VersionError if it is damaged."""
        if not exists(out / PLAN_FILE):
            return None
        return read_record(cls, out / PLAN_FILE, out)
