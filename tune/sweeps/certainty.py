"""How sure a sweep's choice is: the standard error of each validation value,
and which trials are as good as the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fsl_dist.metrics.standard_error import ScoredImages
from tune.records import Trial

FORMULA = "√(p(1−p)/n)"
_TOO_MANY = 0.5
"""share of the trials within one standard error of the best above which the choice is hardly reliable"""


@dataclass(frozen=True, slots=True)
class Certainty:
    """The uncertainty of a sweep's values due to the number of validation images."""

    images: ScoredImages | None = None
    """of the best trial's validations; None if it did not record them"""
    best_value: float | None = None
    errors: Mapping[int, float] = field(default_factory=dict)
    """standard error of each trial's value, by the trial's number"""
    best_error: float | None = None
    near: frozenset[int] = frozenset()
    """trials whose values are within one standard error of the best one, without the best"""
    warning: str = ""
    """one line if the validation images are too few for a choice; otherwise empty"""

    def describe(self, metric: str) -> str:
        """Sentences for the report: images, standard error, formula; empty where the metric has no standard error."""
        if self.images is None or self.best_error is None:
            return ""
        effective = self.images.effective(metric)
        assert effective is not None
        counted = f"n = {self.images.num_images}, the validation images"
        if effective != self.images.num_images:
            counted = (
                f"n = {effective:.1f} = C²/Σ(1/n_c) over the classes that are averaged, of n_c images each"
            )
        listed = ", ".join(f"{number:04d}" for number in sorted(self.near)) or "none"
        return (
            f"Validation scores {self.images.num_images} images of {len(self.images.counts)} classes. The "
            f"standard error of a value p is {FORMULA} with {counted}; of the best it is "
            f"{100 * self.best_error:.1f} points. Other "
            f"trials within one standard error of the best: {listed}."
        )


def judge_certainty(trials: Sequence[Trial], best: Trial | None, metric: str) -> Certainty:
    """Compare all trials with the best one by the best one's standard error.

    A trial within one standard error of the best is an equally good choice, and may be cheaper (the
    one-standard-error rule, Breiman et al. 1984). All trials are validated on the same images, which makes
    differences more certain than values: two trials that differ by more than that are different, two that differ by
    less may be.
    """
    if best is None or best.result is None or best.result.value is None:
        return Certainty()
    errors: dict[int, float] = {}
    values: dict[int, float] = {}
    for trial in trials:
        if not trial.is_scored or trial.result is None or trial.result.value is None:
            continue
        values[trial.number] = trial.result.value
        images = ScoredImages.read(trial.folder)
        error = images.standard_error(metric, trial.result.value) if images else None
        if error is not None:
            errors[trial.number] = error
    images, best_error = ScoredImages.read(best.folder), errors.get(best.number)
    if images is None or best_error is None:
        return Certainty(images, best.result.value, errors)
    lowest = best.result.value - best_error - 1e-12
    near = frozenset(number for number, value in values.items() if value >= lowest) - {best.number}
    rivals = len(near) + 1
    warning = ""
    if near and rivals >= _TOO_MANY * len(values):
        warning = (
            f"{rivals} of {len(values)} trials are within one standard error ({100 * best_error:.1f} points) of "
            f"the best {metric}: {images.num_images} validation images are too few to choose between them (more "
            "images in the val split, or a larger data.holdout_fraction)"
        )
    return Certainty(images, best.result.value, errors, best_error, near, warning)
