"""OUT/fit.json: the candidates of a fit, their scores, the choice and its reason."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from index.base.errors import ConfigError
from index.base.files import exists
from index.base.record_files import read_record, write_record

RECORD_FILE = "fit.json"
FINAL = "final"
"""folder of the final run"""
FROZEN = "frozen"
"""folder of the frozen network, as a run of no epochs"""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRecord:
    """A candidate's scores on some images, fractions in 0 … 1."""

    n: int
    """images"""
    parts: int
    """validation parts that the images come from; 1 for test"""
    acc: float
    """share of right answers"""
    mcr: float
    """mean class recall"""
    acc_interval: Interval
    """95 % bootstrap interval"""
    mcr_interval: Interval
    acc_std: float | None = None
    """standard deviation over the parts (ddof 1); None for one part"""
    mcr_std: float | None = None
    ece: float | None = None
    """expected calibration error"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateRecord:
    """A network with a head."""

    name: str
    round: int
    """0: the frozen network; 1, 2, …: of the rounds; −1: the final run"""
    settings: dict[str, object]
    """what its run changes of the fit's base: dotted key → value"""
    run: str
    """its run's folder, relative to the fit's; of a candidate with several runs the first one; empty:
    the frozen network"""
    head: dict[str, object]
    """the settings of its head, as in RUN/head.json"""
    validation: ScoreRecord | None = None
    test: ScoreRecord | None = None
    images_seen: int = 0
    """by the longest of its runs"""
    seconds: float = 0.0
    """inside training, all of its runs"""
    state: str = "finished"
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileRecord:
    """The properties of the data that decisions depend on."""

    dataset: str
    """folder of the packed data set"""
    num_images: int
    num_classes: int
    """classes that are trained on"""
    splits: dict[str, int]
    """images of each split"""
    largest_class: int
    """training images of the largest class"""
    smallest_class: int
    lone_classes: int
    """number of classes with one training image"""
    num_groups: int
    """groups that no validation part divides"""
    shorter_side: int
    """median of the images' shorter sides, pixels"""
    is_grey: bool
    """whether the images that were looked at have no colour"""
    copies_across: int
    """images of test, or of val, whose bytes are those of a training image"""
    near_duplicates: int | None = None
    """pairs of near-duplicates in different splits; None: they were not looked for"""
    mean: tuple[float, ...] = ()
    """of the pixels that were looked at, by channel, 0 … 1"""
    std: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FitRecord:
    """A fit, whole."""

    profile: ProfileRecord
    metric: str
    """what candidates were compared by: balanced (mean of accuracy and mean class recall), acc or mcr"""
    budget_s: float
    spent_s: dict[str, float]
    """seconds by phase, in order, resumed sessions together"""
    candidates: list[CandidateRecord]
    equal: list[str]
    """candidates that are equal to the best one within noise"""
    chosen: str
    """name of the candidate that the result is or follows"""
    final_run: str
    """folder of the run that is the result, relative to the fit's"""
    notes: list[str] = field(default_factory=list)
    """sentences: decisions with their reasons, and omissions"""
    warnings: list[str] = field(default_factory=list)
    """sentences that a reader must not miss"""

    @property
    def final(self) -> CandidateRecord:
        """The candidate of the run that is the result."""
        return next(
            one
            for one in reversed(self.candidates)
            if (one.run or self.final_run) == self.final_run and (one.round == -1 or one.name == self.chosen)
        )

    def write(self, out: Path) -> None:
        """Write it into the fit's folder, in one step."""
        write_record(out / RECORD_FILE, self)

    @classmethod
    def read(cls, out: Path) -> Self:
        """Read the record of a finished fit. Raises ConfigError if there is none, VersionError if it is damaged."""
        if not exists(out / RECORD_FILE):
            raise ConfigError(
                f"{out} contains no finished fit: {RECORD_FILE} is missing (fit with resume=True continues one "
                "that was interrupted)"
            )
        return read_record(cls, out / RECORD_FILE, out)
