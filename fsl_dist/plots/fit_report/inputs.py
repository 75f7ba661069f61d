"""The contents of the report on a fit, as plain values:
the caller fills `Overview`, `measure_fit` computes the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.inspection import DatasetSummary
from fsl_dist.metrics.learning_curve import Gain

Interval = tuple[float, float]
"""low and high end of a 95 % interval, fractions"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A candidate's scores on some images, fractions in 0 … 1."""

    n: int
    """images"""
    acc: float
    """share of right answers"""
    mcr: float
    """mean class recall: the share of right answers in each class, averaged over classes"""
    acc_interval: Interval | None = None
    mcr_interval: Interval | None = None
    parts: int = 1
    """validation parts that the scores are means over"""
    acc_std: float | None = None
    """standard deviation over the parts"""
    mcr_std: float | None = None
    ece: float | None = None
    """expected calibration error"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A network together with a head."""

    name: str
    head: str
    """the classifier on the embeddings, in words, such as `kNN, cosine, 5 neighbours`; empty if the name contains it"""
    validation: Score | None = None
    test: Score | None = None
    images_seen: int = 0
    """training images, each time that it was used"""
    seconds: float = 0.0
    state: str = "finished"
    note: str = ""
    round: int | None = None
    """0: the frozen network; 1, 2, …: of the rounds; −1: trained on training and validation images together"""
    is_frozen: bool = False
    """whether its network was not trained"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Score of the chosen candidate minus that of another on the same images (a paired bootstrap)."""

    against: str
    """name of the other candidate"""
    images: str
    """on which images: `test` or `validation`"""
    acc: float
    acc_interval: Interval
    mcr: float
    mcr_interval: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """The candidates, their cost, and the choice."""

    dataset: str
    """name of the data set"""
    candidates: tuple[Candidate, ...]
    chosen: str
    """name of the chosen candidate"""
    final: str = ""
    """name of the candidate that is the chosen one trained again on training and validation images; empty: none"""
    equal: tuple[str, ...] = ()
    """candidates that are equal to the best within noise"""
    differences: tuple[Difference, ...] = ()
    budget_s: float = 0.0
    """seconds; 0: there was no budget"""
    spent_s: Mapping[str, float] | None = None
    """seconds by phase, in order"""
    notes: tuple[str, ...] = ()
    """sentences"""
    warnings: tuple[str, ...] = ()
    """sentences that a reader must not miss"""
    commands: tuple[str, ...] = ()
    """what to type next"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of nearly the same content."""

    first: int
    """sample id, below `second`"""
    second: int
    bits: int
    """bits of 64 in which their perceptual hashes differ; 0 for copies"""
    is_copy: bool
    """the files have the same content"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DataFacts:
    """The data set."""

    summary: DatasetSummary
    counts: NDArray[np.int64]
    """int64 [4, C]: images of each label in train, val, test and novel"""
    copies: tuple[Pair, ...] = ()
    """exact copies in different splits or classes"""
    num_copies: int = 0
    """images whose content an earlier image has"""
    near: tuple[Pair, ...] | None = None
    """near-duplicates in different splits or classes, without exact copies; None if there was no search"""
    num_near: tuple[int, int, int] = (0, 0, 0)
    """near-duplicates, copies among them: all pairs, those across splits, those across classes"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """Images that were not trained on, and the predictions of the chosen candidate."""

    split: str
    """test, or val if there is no test"""
    ids: NDArray[np.int64]
    """int64 [n]: sample ids"""
    labels: NDArray[np.int64]
    """int64 [n]"""
    classes: NDArray[np.int64]
    """int64 [C]: label of each column of the probabilities"""
    probabilities: NDArray[np.float64]
    """float64 [n, C]"""
    train_counts: NDArray[np.int64]
    """int64 [C]: training images of each of `classes`"""
    before: NDArray[np.float64] | None = None
    """float64 [n, C]: probabilities before calibration"""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """int64 [n]: label of the most probable class."""
        return self.classes[self.probabilities.argmax(axis=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A training image next to a mistake."""

    id: int
    label: int
    distance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A wrong answer."""

    id: int
    label: int
    predicted: int
    confidence: float
    """probability of the predicted class"""
    own: float
    """probability of the labelled class; 0 if training has no such class"""
    neighbours: tuple[Near, ...]
    """nearest training images, nearest first"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistakes:
    """The wrong answers of highest confidence."""

    shown: tuple[Mistake, ...]
    number: int
    """all mistakes"""
    measure: str
    """what distances are: `Euclidean distance` or `cosine distance`"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelError:
    """A label that is likely wrong."""

    id: int
    label: int
    suggested: int
    probability: float
    """out-of-sample probability of the suggested class"""
    own: float
    """out-of-sample probability of the given class"""
    is_confident: bool
    """confident learning counts the image as wrongly labelled too"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelFacts:
    """Likely label errors, the likeliest first."""

    errors: tuple[LabelError, ...]
    odds: float
    """least factor by which another class is more probable than the label"""
    acc: float
    """share of the checked images whose label is the most probable class"""
    num_judged: int
    not_judged: tuple[int, ...]
    """labels of classes whose images could not be checked"""
    method: str
    """where the probabilities come from, in words"""
    own: NDArray[np.float64]
    """float64 [samples]: out-of-sample probability of each sample's label, row = sample id;
    NaN if it was not checked"""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCurve:
    """Error of some classes over the number of their training images."""

    name: str
    """which classes: `all classes`, `fewest images`, …"""
    labels: tuple[int, ...]
    """of the classes, the ones of lowest recall first"""
    images: int
    """training images in these classes"""
    sizes: tuple[float, ...]
    """training images in these classes, one for each part that was measured"""
    errors: tuple[float, ...]
    """1 − mean recall of these classes, for each part, averaged over draws"""
    intervals: tuple[Interval, ...]
    exponent: float
    """b of a · n^−b"""
    gain: Gain
    """expected change of the mean recall over all classes with twice as many training images in these classes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NextFacts:
    """The expected gain from more images."""

    curves: tuple[GroupCurve, ...]
    """all classes first; a group whose curve could not be measured is left out"""
    head: str
    """the refitted head, in words"""
    draws: int
    num_scored: int
    split: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FitFacts:
    """Everything that the report shows."""

    catalogue: Catalogue
    overview: Overview
    data: DataFacts
    judged: Judged | None = None
    mistakes: Mistakes | None = None
    labels: LabelFacts | None = None
    next: NextFacts | None = None
    left_out: tuple[str, ...] = ()
    """sentences: missing parts of the report, and the reasons"""
