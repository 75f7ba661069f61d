"""A picture of test images and their predictions by several runs (PCN Fig. 6)."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fsl_dist.data.store import ShardStore
from fsl_dist.errors import RequestError
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.plots.class_accuracy import answers_of, protocol_of
from fsl_dist.plots.picture_files import GRID, INK, PAPER, check_png, fit_text, name_runs, write_picture
from fsl_dist.plots.prototype_examples import find_nearest, labels_of_names, share_among
from fsl_dist.plots.prototype_picture import EDGE, GREEN, RED, paste_sample
from fsl_dist.plots.run_draws import EmbeddedRun, open_embedded

NUM_BASE, NUM_NOVEL = 6, 3
_LEFT, _COLUMN, _IMAGE, _REASON, _LINE = 190, 132, 112, 72, 20


@dataclass(frozen=True, slots=True)
class RunAnswer:
    """The prediction of a run for a query."""

    predicted: str
    """name of the class"""
    is_right: bool
    reason: int | None
    """sample id of the training or support image that represents it; None if a classifier has none"""


@dataclass(frozen=True, slots=True)
class ShownQuery:
    """A test image and every run's answer."""

    id: int
    name: str
    """its class"""
    is_novel: bool
    answers: list[RunAnswer]
    """one per run"""


@dataclass(frozen=True, slots=True)
class QueryPicture:
    """Description of a picture of test images and predictions."""

    runs: list[str]
    protocols: list[str]
    """one per run"""
    out: str
    draw: int
    queries: list[ShownQuery]


def plot_queries(
    runs: Sequence[Path],
    out: Path,
    *,
    protocols: Sequence[str] = (),
    settings: Sequence[EvaluationConfig] = (),
    classes: Sequence[str] = (),
    draw: int = 0,
) -> QueryPicture:
    """Show up to 6 test images of base classes and 3 of novel ones with the predictions of all `runs`;
    write `out`, a PNG.

    protocols: one per run as in `answers_of`, or none: each run's default. settings: one per run, overriding its
    `evaluation.*`, or none. classes: names of classes whose images may be shown, by default all. Only images on which
    all runs are tested are shown, at most one per class; those on which the runs differ come first. Deterministic.

    The image that represents a prediction: for prototypes the nearest training or support image of the predicted
    class's prototype with the largest responsibility; for knn the nearest neighbour of the predicted class.

    Raises RequestError if the runs are of different data sets, or have no test image in common.
    """
    check_png(out)
    if not runs:
        raise RequestError("no run is named; name at least one")
    names = name_runs(runs)
    if protocols and len(protocols) != len(runs):
        raise RequestError(f"{len(protocols)} protocols for {len(runs)} runs; give one per run, or none")
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_embedded(run, settings[number] if settings else None))
            for number, run in enumerate(runs)
        ]
        catalogue = opened[0].catalogue
        for other in opened[1:]:
            if other.catalogue.fingerprint != catalogue.fingerprint:
                raise RequestError(
                    f"{runs[0]} and {other.run} are of different data sets or versions of one; "
                    "show runs whose data.dataset and data.version are the same"
                )
        used = [
            protocol_of(run, protocol)
            for run, protocol in zip(opened, protocols or [""] * len(runs), strict=True)
        ]
        ids, predicted = _common_answers(opened, used, draw)
        if classes:
            is_wanted = np.isin(catalogue.labels[ids], labels_of_names(catalogue, classes))
            ids, predicted = ids[is_wanted], predicted[:, is_wanted]
        if not len(ids):
            raise RequestError(
                f"{', '.join(map(str, runs))} are tested on no image in common that could be shown"
            )
        labels = catalogue.labels[ids]
        is_novel = np.isin(ids, catalogue.split_ids("novel"))
        chosen = np.concatenate(
            [
                members[choose_shown(predicted[:, members] == labels[members], labels[members], most)]
                for members, most in (
                    (np.flatnonzero(~is_novel), NUM_BASE),
                    (np.flatnonzero(is_novel), NUM_NOVEL),
                )
            ]
        )
        reasons = [
            _find_reasons(run, protocol, draw, ids[chosen], said[chosen])
            for run, protocol, said in zip(opened, used, predicted, strict=True)
        ]
    shown = [
        ShownQuery(
            id=int(ids[row]),
            name=catalogue.label_name(int(labels[row])),
            is_novel=bool(is_novel[row]),
            answers=[
                RunAnswer(catalogue.label_name(int(said[row])), bool(said[row] == labels[row]), of_run[place])
                for said, of_run in zip(predicted, reasons, strict=True)
            ],
        )
        for place, row in enumerate(chosen.tolist())
    ]
    store = ShardStore(catalogue)
    write_picture(draw_queries(shown, list(zip(names, used, strict=True)), store), out)
    store.close()
    return QueryPicture([str(run) for run in runs], used, str(out), draw, shown)


def _common_answers(
    runs: Sequence[EmbeddedRun], protocols: Sequence[str], draw: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ids, predicted): sample ids int64 [n] of the common test images, ascending, and the predictions,
    int64 [runs, n]."""
    answers = [answers_of(run, protocol, draw) for run, protocol in zip(runs, protocols, strict=True)]
    ids = answers[0].ids
    for answer in answers:
        ids = np.intersect1d(ids, answer.ids)
    found = []
    for answer in answers:
        order = np.argsort(answer.ids)
        found.append(answer.predicted[order[np.searchsorted(answer.ids, ids, sorter=order)]])
    return ids, np.stack(found)


def choose_shown(is_right: NDArray[np.bool_], labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Positions of at most `most` images, no two of a class, in the order of their classes.

    `is_right`: bool [runs, n]; `labels`: int64 [n]. Images are grouped by which runs are correct, and selected from
    the groups in rotation: first those on which the runs differ, then all correct, then all wrong.
    """
    groups: dict[tuple[bool, ...], list[int]] = {}
    for position, pattern in enumerate(map(tuple, is_right.T.tolist())):
        groups.setdefault(pattern, []).append(position)
    turns = [groups[pattern] for pattern in sorted(groups, key=lambda p: (all(p) + 2 * (not any(p)), p))]
    chosen: list[int] = []
    taken: set[int] = set()
    while turns and len(chosen) < most:
        for group in list(turns):
            left = [position for position in group if int(labels[position]) not in taken]
            if not left:
                turns.remove(group)
            elif len(chosen) < most:
                # The middle one: the first of a class are often the first of its first group.
                chosen.append(left[len(left) // 2])
                taken.add(int(labels[chosen[-1]]))
    return np.array(sorted(chosen, key=lambda position: labels[position]), dtype=np.int64)


def _find_reasons(
    run: EmbeddedRun, protocol: str, draw: int, ids: NDArray[np.int64], predicted: NDArray[np.int64]
) -> list[int | None]:
    """Sample id of the image that represents the prediction of `run` for each of `ids`; None if there is none."""
    if protocol == "fine_tune":
        return [None] * len(ids)
    if protocol == "prototypes":
        drawn = run.draw(draw)
        tested, learnt, prototypes = drawn.tested, drawn.learnt, drawn.prototypes
    else:
        tested, learnt, prototypes = run.query, run.learnt, None
    reasons: list[int | None] = []
    for sample, label in zip(ids.tolist(), predicted.tolist(), strict=True):
        point = tested.vectors[np.flatnonzero(tested.ids == sample)[0]]
        if prototypes is not None:
            row = int(np.flatnonzero(prototypes.labels == label)[0])
            means = prototypes.means[row][prototypes.mask[row]]
            point = means[share_among(point, means, run.temperature).argmax()]
        of_class = learnt.of_class(label)
        reasons.append(int(of_class.ids[find_nearest(point[None], of_class.vectors)[0]]))
    return reasons


def draw_queries(
    shown: Sequence[ShownQuery], runs: Sequence[tuple[str, str]], store: ShardStore
) -> Image.Image:
    """A column a query: the image, its class, and a row a run (name, protocol) with its answer, green where right."""
    row_height = _LINE + _REASON + EDGE
    head = _LINE + _IMAGE + _LINE + EDGE
    sheet = Image.new(
        "RGB", (_LEFT + _COLUMN * len(shown) + EDGE, EDGE + head + row_height * len(runs)), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (name, protocol) in enumerate(runs):
        top = EDGE + head + number * row_height
        draw.line((EDGE, top - 6, sheet.width - EDGE, top - 6), GRID)
        draw.text((EDGE, top), fit_text(name, font, _LEFT - 2 * EDGE), INK, font)
        draw.text((EDGE, top + _LINE), f"by {protocol}", INK, font)
    for place, query in enumerate(shown):
        left = _LEFT + place * _COLUMN
        draw.text((left, EDGE), "novel" if query.is_novel else "base", INK, font)
        paste_sample(sheet, store, query.id, left, EDGE + _LINE, _IMAGE)
        draw.text((left, EDGE + _LINE + _IMAGE + 3), fit_text(query.name, font, _COLUMN - 8), INK, font)
        for number, answer in enumerate(query.answers):
            top = EDGE + head + number * row_height
            colour = GREEN if answer.is_right else RED
            draw.text((left, top), fit_text(answer.predicted, font, _COLUMN - 8), colour, font)
            if answer.reason is not None:
                paste_sample(sheet, store, answer.reason, left, top + _LINE, _REASON)
    return sheet
