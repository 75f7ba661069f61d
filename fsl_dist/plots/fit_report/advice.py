"""Next steps: the learning curves, and the expected gain from more images of each class."""

from html import escape

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.plots.fit_report.charts import Plot, Scale, around, chart
from fsl_dist.plots.fit_report.inputs import GroupCurve, NextFacts
from fsl_dist.plots.fit_report.markup import bullets, count, details, percent, table

_NAMED_CLASSES = 8
_KINDS = ("four", "one", "two", "three")


def describe_advice(facts: NextFacts, catalogue: Catalogue) -> list[str]:
    """The advice as plain sentences, the most valuable first: gain for each added image."""
    whole, *groups = facts.curves
    known = sorted(
        (one for one in groups if one.gain.low > 0), key=lambda one: -one.gain.mean / max(one.images, 1)
    )
    sentences = [_advise(one, catalogue) for one in known]
    if whole.gain.low > 0:
        sentences.append(
            f"Twice as many images in all classes ({count(whole.images, 'more image', 'more images')}) are "
            f"expected to add {_gain(whole)} of mean class "
            "recall."
        )
    elif not known:
        sentences.append(
            "The gain from more images cannot be estimated: fitted on parts of the training images, the head has "
            "the same scores up to noise. A network that was trained on all of them hides the loss from fewer "
            "images; more test images, or another fit "
            "on half of the data, would show it."
        )
    unknown = [one.name for one in groups if one.gain.low <= 0]
    if unknown and known:
        sentences.append(
            f"For the classes with {' and '.join(map(_in_words, unknown))} it cannot be estimated: the interval "
            "includes 0."
        )
    return sentences


def render_advice(facts: NextFacts, catalogue: Catalogue) -> str:
    """The section on what to do next, HTML."""
    rows = [
        [
            one.name,
            f"{len(one.labels):,}",
            f"{one.images:,}",
            *(f"{percent(1 - error)}" for error in one.errors),
            f"{one.exponent:.2f}",
            f"{100 * one.gain.mean:+.1f} ({100 * one.gain.low:+.1f} to {100 * one.gain.high:+.1f})".replace(
                "-", "−"
            ),
        ]
        for one in facts.curves
    ]
    head = [
        "classes",
        "number",
        "training images",
        "recall % at ¼",
        "at ½",
        "at all",
        "exponent",
        "twice the images: MCR, 90 % interval",
    ]
    method = (
        f"How it is measured: {facts.head} was fitted on a quarter, a half and all of the training images of the "
        f"classes ({count(facts.draws, 'draw')} each; the "
        f"other classes keep theirs) and scored on {count(facts.num_scored, f'{facts.split} image')}. The network "
        "itself was not retrained, so its gain from "
        "more images is not included: the expectation is cautious. The law is error = a · images^−b for these "
        "classes; the loss of the other classes from a half to all images is expected once more. A power law "
        "tends to be too optimistic for a class that is nearly solved."
    )
    return "\n".join(
        [
            bullets(describe_advice(facts, catalogue)),
            _draw(facts),
            details("Table of the learning curves", table("Learning curves", head, rows)),
            f'<p class="note">{escape(method)}</p>',
        ]
    )


def _advise(one: GroupCurve, catalogue: Catalogue) -> str:
    named = [catalogue.label_name(label) for label in one.labels[:_NAMED_CLASSES]]
    more = f" and {len(one.labels) - len(named)} more" if len(one.labels) > len(named) else ""
    return (
        f"About {count(one.images, 'more image', 'more images')} (twice as many as now) in the classes with "
        f"{_in_words(one.name)} are expected to add {_gain(one)} "
        f"of mean class recall. Those of lowest recall first: {', '.join(named)}{more}."
    )


def _gain(one: GroupCurve) -> str:
    """`+3.1 ± 1.4 points`: half of the 90 % interval."""
    return f"{100 * one.gain.mean:+.1f} ± {50 * (one.gain.high - one.gain.low):.1f} points"


def _in_words(group: str) -> str:
    return {
        "fewest images": "the fewest images",
        "middle": "a middling number of images",
        "most images": "the most images",
    }.get(group, group)


def _draw(facts: NextFacts) -> str:
    sizes = [size for one in facts.curves for size in (*one.sizes, 2 * one.sizes[-1])]
    errors = [max(error, 0.003) for one in facts.curves for error in one.errors]

    def draw(width: int, height: int) -> str:
        plot = Plot(
            width,
            height,
            around(sizes, is_log=True),
            Scale(
                0.0,
                min(
                    1.05 * max(max(errors), max(high for one in facts.curves for _, high in one.intervals)),
                    1.0,
                ),
            ),
        )
        for one, kind in zip(facts.curves, _KINDS, strict=False):
            last, error = one.sizes[-1], one.errors[-1]
            plot.line(list(zip(one.sizes, one.errors, strict=True)), kind)
            plot.line([(last, error), (2 * last, error * 2.0**-one.exponent)], "even")
            for size, value, (low, high) in zip(one.sizes, one.errors, one.intervals, strict=True):
                plot.span(size, low, high, kind)
                plot.dot(
                    size, value, kind, f"{one.name}: {size:,.0f} training images, error {percent(value)} %"
                )
        return plot.render(
            "Error of groups of classes over the number of their training images",
            "training images in these classes",
            "error %",
            lambda value: f"{value:,.0f}",
            lambda value: f"{100 * value:.0f}",
        )

    legend = [(kind, one.name) for one, kind in zip(facts.curves, _KINDS, strict=False)]
    caption = (
        "Error is 1 − mean recall of these classes, with 95 % bootstrap intervals over the scored images. The "
        "dotted line is the power law up to twice "
        "the images."
    )
    return chart(draw, caption, legend)
