"""The perturbation of a point in population based training:
a function of (seed, trial, number of changes), without hidden state."""

from collections.abc import Mapping

from fsl_dist.seeding import generator
from tune.space import Knob, Point, Value

_FACTORS = (0.8, 1.2)


def perturb(
    space: Mapping[str, Knob], donor: Point, *, seed: int, trial: int, change: int, resample: float
) -> Point:
    """Perturb the point `donor` (Jaderberg et al. 2017, section 3.3).

    Args:
        space: the sweep's.
        donor: a value for each key of `space`; the base's own may be outside the key's knob, or be a word such as auto.
        seed: the sweep's.
        trial: number of the trial that gets the point.
        change: number of its earlier changes.
        resample: probability that a value is drawn from its knob instead.

    Returns:
        A value for each key of `space`, inside its knob.
    """
    point: Point = {}
    for key, knob in space.items():
        draw = generator(seed, f"sweep perturb {key}", trial, change)
        is_known = donor[key] in knob.options if knob.options else isinstance(donor[key], int | float)
        if draw.random() < resample or not is_known:
            point[key] = knob.place(float(draw.random()))
        else:
            point[key] = _near(knob, donor[key], bool(draw.integers(2)))
    return point


def _near(knob: Knob, value: Value, is_up: bool) -> Value:
    if knob.options:
        place = knob.options.index(value) + (1 if is_up else -1)
        return knob.options[min(max(place, 0), len(knob.options) - 1)]
    low, high = knob.randint or knob.uniform or knob.loguniform
    assert isinstance(value, int | float)
    moved = min(max(value * _FACTORS[is_up], low), high)
    if not knob.randint:
        return moved
    nearest = round(moved)
    return min(max(nearest if nearest != value else int(value) + (1 if is_up else -1), int(low)), int(high))
