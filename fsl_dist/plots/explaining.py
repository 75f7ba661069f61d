"""From image files to evidence: the nearest training images, their vote, both activation maps;
as a page and pictures."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from fsl_dist.errors import RequestError
from fsl_dist.evaluation.evidence import Evidence, Vote, gather_evidence
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.heads.head_file import read_head
from fsl_dist.image_files import FailedImage, ImageFiles, ImageLike, name_images
from fsl_dist.notebook import html_frame
from fsl_dist.plots.evidence_page import PageFacts, render_evidence
from fsl_dist.plots.evidence_picture import draw_evidence
from fsl_dist.plots.picture_files import write_picture
from fsl_dist.predicting import ScoredClass, open_added, rank
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun
from index.base.files import write_atomic

PAGE_FILE = "index.html"
# A file name has 255 bytes; a number, ".png", and the temporary name need up to 50 of them.
_MAX_STEM_BYTES = 200
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image near to the one explained."""

    id: int
    key: str
    label: str
    group: str
    """empty where the data set has none"""
    distance: float
    """Euclidean for index.metric=l2; otherwise the cosine or the product, which is largest for the nearest image"""
    measure: str
    """what `distance` is: distance, cosine or product"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What speaks for one image's answer."""

    image: str
    """its path, or `images[3]` for one in memory"""
    picture: str
    """PNG of the evidence; empty where nothing was written"""
    votes: list[Vote]
    """the answer first"""
    neighbours: list[Neighbour]
    """nearest first"""
    evidence: Evidence = field(repr=False)
    """the same with pixels and activation maps as arrays"""
    answer: ScoredClass | None = None
    """what `predict` answers; None where the run has neither a head nor added classes, and the vote is the answer"""

    @property
    def is_disputed(self) -> bool:
        """Whether the vote of the nearest training images is for another class than the answer."""
        return self.answer is not None and self.answer.name != self.votes[0].name

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        draw_evidence(Path(self.image).name, self.evidence, self.answer).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class ExplainReport(Sequence[Explanation]):
    """What speaks for the answer to each image: `report[0].neighbours`; a notebook shows it as pictures."""

    run: str
    dataset: str
    page: str
    """the HTML file; empty where nothing was written"""
    explanations: list[Explanation]
    """one per readable image, in the given order"""
    failed: list[FailedImage]
    html: str = field(repr=False)
    """the page; empty if no image could be read"""

    @overload
    def __getitem__(self, position: int) -> Explanation: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Explanation]: ...
    def __getitem__(self, position: int | slice) -> Explanation | Sequence[Explanation]:
        return self.explanations[position]

    def __len__(self) -> int:
        return len(self.explanations)

    def _repr_html_(self) -> str:
        return html_frame(self.html)

    def to_json(self) -> dict:
        """The report as plain values, without pixels and page."""
        return {
            "run": self.run,
            "dataset": self.dataset,
            "page": self.page,
            "explanations": [
                {
                    "image": one.image,
                    "picture": one.picture,
                    "answer": None if one.answer is None else dataclasses.asdict(one.answer),
                    "votes": [dataclasses.asdict(vote) for vote in one.votes],
                    "neighbours": [dataclasses.asdict(neighbour) for neighbour in one.neighbours],
                }
                for one in self.explanations
            ],
            "failed": [dataclasses.asdict(failed) for failed in self.failed],
        }


def explain(
    trained: TrainedRun,
    images: Sequence[ImageLike],
    *,
    out: Path | None = None,
    k: int = 5,
    maps: bool = True,
) -> ExplainReport:
    """Find the `k` training images nearest to each image by a run's best checkpoint.

    With `out`, the result is written into that folder: `index.html` is self-contained, and each image has a PNG.
    Images are decoded and transformed as in an evaluation; the training images are the run's. Deterministic.

    Raises RequestError for a run on feature vectors, a `k` above the number of training images, an `out` that is not
    a folder, and if maps are requested of a network without maps. Unreadable images are listed in `failed`.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise RequestError(
            f"out={out} is a file; explain writes a folder with {PAGE_FILE} and a PNG for each image"
        )
    asked, config = name_images(images), trained.config
    if config.data.features:
        raise RequestError(
            f"{trained.run} was trained on data.features={config.data.features}; explain needs images"
        )
    gallery = open_selection(trained, config, "gallery", split_run(trained.catalogue, config).gallery)
    found: list[tuple[str, Evidence]] = []
    answers: list[ScoredClass | None] = []
    has_answer = read_head(Path(trained.run)) is not None or bool(open_added(trained))
    head = ""
    with ImageFiles(trained.embedder, config, trained.catalogue) as files:
        for rows, batch in files.batches(asked):
            some = gather_evidence(trained, config, gallery, batch, k, has_maps=maps)
            found += zip((asked[row].name for row in rows), some, strict=True)
            if has_answer:
                ranked = rank(trained, trained.embedder.embed_images(batch), {})
                head, answers = ranked.head, answers + [best[0] for best in ranked.best(1)]
            else:
                answers += [None] * len(rows)
        failed = files.failed
    explanations = []
    names = _name_pictures([image for image, _ in found])
    for (image, evidence), name, answer in zip(found, names, answers, strict=True):
        picture = "" if out is None else str(out / name)
        if picture:
            write_picture(draw_evidence(Path(image).name, evidence, answer), Path(picture))
        neighbours = [
            Neighbour(result.id, result.key, result.label, result.group, result.distance, result.measure)
            for result in evidence.results
        ]
        explanations.append(Explanation(image, picture, evidence.votes, neighbours, evidence, answer))
    page = html = ""
    if found:
        facts = _describe(trained, gallery.num_vectors, gallery.metric, maps, head)
        named = [(Path(one.image).name, one.evidence, one.answer) for one in explanations]
        html = render_evidence(facts, named)
        if out is not None:
            page = str(out / PAGE_FILE)
            write_atomic(Path(page), html.encode("utf-8"))
    return ExplainReport(trained.run, config.data.dataset, page, explanations, failed, html)


def _describe(trained: TrainedRun, num_gallery: int, metric: str, has_maps: bool, head: str) -> PageFacts:
    config = trained.config
    return PageFacts(
        run=trained.run,
        method=config.method.kind,
        backbone=config.backbone.name,
        dataset=Path(config.data.dataset).name,
        checkpoint=trained.parameters,
        num_gallery=num_gallery,
        image_size=config.data.image_size,
        has_maps=has_maps,
        metric=metric,
        head=head,
    )


def _name_pictures(images: Sequence[str]) -> list[str]:
    """A file name for each image: its own with .png, truncated if it is long, numbered if several images share it."""
    names: list[str] = []
    for image in images:
        stem = _cut(Path(image).stem)
        name, number = f"{stem}.png", 2
        while name in names:
            name, number = f"{stem}-{number}.png", number + 1
        names.append(name)
    return names


def _cut(stem: str) -> str:
    """`stem`, or its end and a hash of the whole name if it is too long."""
    encoded = os.fsencode(stem)
    if len(encoded) <= _MAX_STEM_BYTES:
        return stem
    ending = "~" + hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]
    return encoded[len(ending) - _MAX_STEM_BYTES :].decode(errors="ignore") + ending
