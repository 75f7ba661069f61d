"""How a budget is divided: image size, rounds, seconds of each run. Pure functions of measured rates."""

import math
from dataclasses import dataclass, replace

SIZES = (64, 96, 128, 160, 192, 224)
"""image sizes for pretrained networks, pixels"""
FINAL_EPOCHS = 20
"""epochs that the image size is chosen for: on 40 groceries 24 epochs at 96 px reached what more did not improve
(docs/how_to/fit.md)"""
LEAST_EPOCHS = 3
"""with fewer epochs of the whole network than this, only its last blocks are trained"""
ROUND_EPOCHS = 4
"""with fewer epochs of a candidate than this, the scores of a round are not reliable"""
LEAST_S = 4.0
"""seconds of a candidate's training, at least"""
LONGER = 1.5
"""training time of candidates in a second round relative to the first, unless it uses other validation parts"""
ROUNDS_SHARE = 0.39
"""of the time for training, 35 of 90 % of the budget; the rest is the final run's"""
END_SHARE = 0.05
"""of the budget that nothing is planned in: networks are closed, Ray ends, the report is written"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What this machine does, images per second."""

    trial: float
    """of one trial, with the planned number of concurrent trials, at `size` pixels"""
    final: float
    """of a single run that uses the whole machine, at `size` pixels"""
    embed: float
    """embedded with the machine to itself, at `size` pixels"""
    size: int
    """side of the images that were measured with, pixels"""
    threads: int = 1
    """of a run that has the machine to itself, and of embedding"""

    def at(self, size: int) -> "Rates":
        """The same at another size: a convolution's cost grows with the image's area."""
        factor = (self.size / size) ** 2
        return replace(
            self, trial=self.trial * factor, final=self.final * factor, embed=self.embed * factor, size=size
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Overheads:
    """Seconds that a round needs in addition to its trainings."""

    startup: float
    """until the first trial trains: Ray and the trial's process start and import torch"""
    trial: float
    """of each trial: network, first batch, validation, checkpoint"""

    @classmethod
    def after_start(cls, start_s: float) -> "Overheads":
        """Overheads of a machine on which this process took `start_s` seconds to start: on a busy one all are slower.

        On two cores that eight other programs used, this process took 32 s, the start of a round 17 s, and a trial 25
        s in addition to its training.
        """
        return cls(startup=max(8.0, 5 + 0.5 * start_s), trial=max(3.0, 0.7 * start_s))


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """One round: several recipes, each trained for the same time."""

    candidates: int
    """number of recipes in the round"""
    parts: int
    """validation parts that each is trained and scored on"""
    seconds: float
    """per training"""


def choose_size(final: float, measured_px: int, final_s: float, num_images: int, own_px: int) -> int:
    """The largest image size at which the final run sees each image about `FINAL_EPOCHS` times;
    the smallest where none does.

    Args:
        final: images per second of the final run at `measured_px`.
        measured_px: side of the images it was measured with.
        final_s: seconds of the final run.
        num_images: that it trains on.
        own_px: the images' own size; a network sees no more.
    """
    fitting = [
        size
        for size in SIZES
        if size <= max(own_px, SIZES[0])
        and final * (measured_px / size) ** 2 * final_s >= FINAL_EPOCHS * num_images
    ]
    return max(fitting, default=SIZES[0])


def choose_batch(num_images: int) -> int:
    """Images per step: 96, or an eighth of a small training part, so that an epoch has several steps."""
    return max(8, min(96, num_images // 8))


def least_seconds(rate: float, num_images: int) -> float:
    """Seconds that a candidate must train for a reliable score."""
    return max(LEAST_S, ROUND_EPOCHS * num_images / rate)


def plan_rounds(
    available_s: float,
    *,
    slots: int,
    least_s: float,
    overheads: Overheads,
    num_recipes: int,
    can_repeat: bool,
) -> list[RoundPlan]:
    """Plan the rounds that fit into the time; empty if it does not suffice for two candidates.

    If the time suffices for two waves of candidates and the same again, half of it becomes a second round in which
    the best two are trained for longer, on other validation parts if there are some.

    Args:
        available_s: seconds for all rounds.
        slots: concurrent trainings.
        least_s: minimum seconds per training.
        overheads: seconds in addition to the trainings.
        num_recipes: number of recipes.
        can_repeat: whether there are other validation parts.
    """
    overhead_s = overheads.trial
    available_s -= overheads.startup
    waves = int(max(available_s, 0.0) / (least_s + overhead_s))
    if waves * slots < 2 or num_recipes < 2:
        return []
    if waves < 4 or num_recipes <= 2:
        return [_round(available_s, waves, slots, overhead_s, num_recipes, parts=1)]
    half_s = available_s / 2
    first = _round(half_s, waves // 2, slots, overhead_s, num_recipes, parts=1)
    second = _finals(half_s, slots, overhead_s, first.seconds, can_repeat=can_repeat)
    is_longer = second.seconds >= LONGER * first.seconds
    if is_longer or (can_repeat and first.candidates == num_recipes):
        return [first, second]
    return [_round(available_s, waves, slots, overhead_s, num_recipes, parts=1)]


def _finals(half_s: float, slots: int, overhead_s: float, first_s: float, *, can_repeat: bool) -> RoundPlan:
    """Train the best two once more: on as many parts as there are slots,
    or on two parts in sequence if that is long enough."""
    waves_of_two = math.ceil(2 / slots)
    twice_s = half_s / (2 * waves_of_two) - overhead_s
    if can_repeat and slots < 4 and twice_s >= LONGER * first_s:
        return RoundPlan(candidates=2, parts=2, seconds=twice_s)
    parts = max(1, min(slots // 2, 4)) if can_repeat else 1
    return RoundPlan(candidates=2, parts=parts, seconds=half_s / waves_of_two - overhead_s)


def _round(
    available_s: float, most_waves: int, slots: int, overhead_s: float, num_recipes: int, parts: int
) -> RoundPlan:
    candidates = min(num_recipes, most_waves * slots)
    waves = math.ceil(candidates / slots)
    candidates = min(num_recipes, waves * slots)
    return RoundPlan(candidates=candidates, parts=parts, seconds=available_s / waves - overhead_s)
