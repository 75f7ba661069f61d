"""From image files to evidence: the nearest training images, their vote, both activation maps; as a page and pictures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsl_dist.errors import RequestError
from fsl_dist.evaluation.evidence import Evidence, Vote, gather_evidence
from fsl_dist.evaluation.report import open_selection
from fsl_dist.image_files import FailedImage, ImageFiles
from fsl_dist.plots.evidence_page import PageFacts, render_evidence
from fsl_dist.plots.evidence_picture import draw_evidence
from fsl_dist.plots.picture_files import write_picture
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun, open_trained
from index.base.files import write_atomic

PAGE_FILE = "index.html"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image near to the one explained."""

    id: int
    key: str
    label: str
    group: str
    """empty where the data set has none"""
    distance: float
    """Euclidean; of index.metric=inner_product the negated product"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What speaks for one image's answer."""

    image: str
    picture: str
    """PNG of the evidence"""
    votes: list[Vote]
    """the answer first"""
    neighbours: list[Neighbour]
    """nearest first"""


@dataclass(frozen=True, slots=True)
class ExplainReport:
    """What `fsl-dist explain` prints."""

    run: str
    dataset: str
    page: str
    """the HTML file; empty where no image could be read"""
    explanations: list[Explanation]
    """one an image that could be read, in the order asked for"""
    failed: list[FailedImage]

    def to_json(self) -> dict:
        """The report as plain values."""
        return dataclasses.asdict(self)


def explain(
    run: Path, images: Sequence[Path], out: Path, *, k: int = 5, has_maps: bool = True
) -> ExplainReport:
    """Show the `k` training images nearest to each image file by a run's best checkpoint, and write them into the folder `out`.

    `index.html` holds everything and loads nothing; each image has a PNG besides. Files are decoded and transformed as in
    an evaluation; the training images are the run's. Deterministic.

    Raises RequestError for a folder that is no run, a run on feature vectors, a `k` above the number of training images,
    an `out` that is no folder, and where maps are asked of a network that has none. An image that cannot be read is in
    `failed`.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(
            f"--out {out} is a file; explain writes a folder with {PAGE_FILE} and a PNG an image"
        )
    trained = open_trained(run)
    config = trained.config
    if config.data.features:
        raise RequestError(f"{run} was trained on data.features={config.data.features}; explain takes images")
    gallery = open_selection(trained, config, "gallery", split_run(trained.catalogue, config).gallery)
    found: list[tuple[Path, Evidence]] = []
    with ImageFiles(trained.embedder, config) as files:
        for rows, batch in files.batches(images):
            some = gather_evidence(trained, config, gallery, batch, k, has_maps=has_maps)
            found += zip((images[row] for row in rows), some, strict=True)
        failed = files.failed
    trained.embedder.source.close()
    explanations = []
    for (path, evidence), name in zip(found, _name_pictures([path for path, _ in found]), strict=True):
        write_picture(draw_evidence(path.name, evidence), out / name)
        neighbours = [
            Neighbour(result.id, result.key, result.label, result.group, result.distance)
            for result in evidence.results
        ]
        explanations.append(Explanation(str(path), str(out / name), evidence.votes, neighbours))
    page = out / PAGE_FILE
    if found:
        facts = _describe(trained, run, gallery.num_vectors, gallery.metric, has_maps)
        text = render_evidence(facts, [(path.name, evidence) for path, evidence in found])
        write_atomic(page, text.encode("utf-8"))
    return ExplainReport(str(run), config.data.dataset, str(page) if found else "", explanations, failed)


def _describe(trained: TrainedRun, run: Path, num_gallery: int, metric: str, has_maps: bool) -> PageFacts:
    config = trained.config
    return PageFacts(
        run=str(run),
        method=config.method.kind,
        backbone=config.backbone.name,
        dataset=Path(config.data.dataset).name,
        checkpoint=trained.parameters,
        num_gallery=num_gallery,
        image_size=config.data.image_size,
        has_maps=has_maps,
        metric=metric,
    )


def _name_pictures(paths: Sequence[Path]) -> list[str]:
    """A file name an image: its own with .png, numbered where several images have the same."""
    names: list[str] = []
    for path in paths:
        name, number = f"{path.stem}.png", 2
        while name in names:
            name, number = f"{path.stem}-{number}.png", number + 1
        names.append(name)
    return names
