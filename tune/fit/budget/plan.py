"""OUT/plan.json: what a fit measured and decided before its first round. A resumed fit follows it."""

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
    """What was measured and decided."""

    profile: ProfileRecord
    backbone: Point
    """the pretrained network: its settings"""
    has_weights: bool
    pretrained: Literal["trained", "frozen", "unused"] = "trained"
    """what becomes of the pretrained network where small networks from scratch are tried too: the time may not suffice to train
    it, or to embed all images with it"""
    size: int
    """side of the images that the pretrained network sees, pixels"""
    scratch_size: int
    """side of the images that a small network from scratch sees, pixels"""
    batch_size: int
    freeze: int
    """leading layers that stay as they are; 0: the whole network is trained"""
    slots: int
    """trials at a time"""
    cpus: int
    """CPU cores of a trial"""
    gpus: float
    joins: bool
    rates: Rates | None = None
    """at `size`; None before they were measured"""
    rounds: tuple[RoundPlan, ...] = ()
    overheads: Overheads = field(default_factory=lambda: Overheads.after_start(0.0))
    trains: bool = True
    """whether the budget suffices for an epoch"""
    rounds_end_s: float = 0.0
    """seconds of the budget that are used when the rounds end, as they were planned"""
    notes: tuple[str, ...] = field(default=())

    def recipes(self, given: Mapping[str, Value]) -> list[Recipe]:
        """What is trained, best by prior first; given: settings that hold for all candidates."""
        found = list_recipes(self.profile, has_weights=self.has_weights, given=given)
        if self.pretrained == "trained":
            return found
        return [one for one in found if one.family == "scratch"]

    def frozen_recipe(self, given: Mapping[str, Value]) -> Recipe:
        """The recipe whose network is scored without training: of the pretrained one if there is one."""
        found = list_recipes(self.profile, has_weights=self.has_weights, given=given)
        first = "scratch" if self.pretrained == "unused" else "pretrained"
        return next((one for one in found if one.family == first), found[0])

    def write(self, out: Path) -> None:
        """Write it into the fit's folder."""
        write_record(out / PLAN_FILE, self)

    @classmethod
    def read(cls, out: Path) -> Self | None:
        """That of a fit; None where it has none yet. Raises VersionError where it is damaged."""
        if not exists(out / PLAN_FILE):
            return None
        return read_record(cls, out / PLAN_FILE, out)
