"""The pictures of `plot retrieval`, one query's results by several runs, and `plot maps`, activation maps of pairs
(CHAI Figs. 3, 4)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.evidence import Evidence, gather_evidence
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.metrics.retrieval import NO_GROUP
from fsl_dist.plots.evidence_picture import (
    EDGE,
    GAP,
    LINE,
    MUTED,
    PAPER,
    TILE,
    draw_result,
    paste,
    write,
)
from fsl_dist.plots.map_overlay import overlay
from fsl_dist.plots.picture_files import check_png, name_runs, write_picture
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun, open_trained

_PAIRS_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Shown:
    """An image in a picture."""

    id: int
    key: str
    label: str
    group: str
    """empty if it has none"""


@dataclass(frozen=True, slots=True)
class System:
    """One run's results."""

    run: str
    name: str
    """the run's in the picture"""
    results: list[Shown]
    """nearest first"""
    distances: list[float]


@dataclass(frozen=True, slots=True)
class RetrievalPicture:
    """Description of a picture of queries and their nearest training images."""

    dataset: str
    out: str
    query: Shown
    systems: list[System]


@dataclass(frozen=True, slots=True)
class MapPicture:
    """Description of a picture of activation maps."""

    run: str
    dataset: str
    out: str
    pairs: list[tuple[Shown, Shown]]
    """query and its nearest training image"""


def plot_retrieval(runs: Sequence[Path], out: Path, *, query: str = "", k: int = 5) -> RetrievalPicture:
    """Show the `k` training images nearest to one image of the data set by each of `runs`, a row a run;
    write `out`, a PNG.

    query: a key of the catalogue, or a sample id; by default the middle one of the first run's queries. The image
    itself is never among its results. Deterministic.

    Raises RequestError for runs of different data sets, on feature vectors, and a query that the data set lacks.
    """
    check_png(out)
    rows: list[tuple[str, Evidence]] = []
    systems, fingerprint, shown, dataset, sample = [], "", None, "", -1
    for run, name in zip(runs, name_runs(runs), strict=True):
        with _open(run) as trained:
            catalogue, config = trained.catalogue, trained.config
            if fingerprint not in ("", catalogue.fingerprint):
                raise RequestError(
                    f"{runs[0]} and {run} are of different data sets or versions ({dataset}, "
                    f"{config.data.dataset}); one query's results are compared on the same images"
                )
            fingerprint, dataset = catalogue.fingerprint, config.data.dataset
            if shown is None:
                sample = find_sample(catalogue, query) if query else _spread_queries(trained, 1)[0]
                shown = _describe(catalogue, sample)
            evidence = _gather(trained, [sample], k, has_maps=False)[0]
            rows.append((name, evidence))
            results = [_describe(catalogue, result.id) for result in evidence.results]
            systems.append(System(str(run), name, results, [result.distance for result in evidence.results]))
    assert shown is not None
    write_picture(draw_systems(shown, rows), out)
    return RetrievalPicture(dataset, str(out), shown, systems)


def plot_maps(run: Path, out: Path, *, queries: Sequence[str] = (), pairs: int = 6) -> MapPicture:
    """Show queries with their nearest training images and both activation maps; write `out`, a PNG.

    queries: keys of the catalogue, or sample ids; by default `pairs` of the run's queries, evenly spread over classes.
    Deterministic.

    Raises RequestError for a query that the data set lacks, and a run without queries or without activation maps.
    """
    check_png(out)
    with _open(run) as trained:
        catalogue, config = trained.catalogue, trained.config
        samples = [find_sample(catalogue, query) for query in queries] or _spread_queries(trained, pairs)
        found = _gather(trained, samples, 1, has_maps=True)
        described = [
            (_describe(catalogue, sample), _describe(catalogue, evidence.results[0].id))
            for sample, evidence in zip(samples, found, strict=True)
        ]
        write_picture(draw_pairs(list(zip(described, found, strict=True))), out)
        return MapPicture(str(run), config.data.dataset, str(out), described)


def _spread_queries(trained: TrainedRun, num: int) -> list[int]:
    """Sample ids of `num` of the run's queries, evenly spread over classes; the middle one where `num` is 1."""
    selection = split_run(trained.catalogue, trained.config).query
    if selection is None:
        raise RequestError(
            f"data.dataset={trained.config.data.dataset} has no test and no val split for queries (select some by "
            "query=…)"
        )
    last = len(selection) - 1
    places = np.linspace(0, last, min(num, len(selection))) if num > 1 else np.array([last / 2])
    return selection.ids[np.unique(places.astype(np.int64))].tolist()


def find_sample(catalogue: Catalogue, query: str) -> int:
    """Sample id of a key, or of a number that is one; RequestError where the data set has neither."""
    keys = catalogue.keys(np.arange(catalogue.num_samples))
    if query in keys:
        return keys.index(query)
    if query.isascii() and query.isdigit() and int(query) < len(keys):
        return int(query)
    raise RequestError(
        f"query={query} is neither a key of '{catalogue.folder}', such as '{keys[0]}', nor a sample id, "
        f"0 … {len(keys) - 1}"
    )


def draw_systems(query: Shown, rows: Sequence[tuple[str, Evidence]]) -> Image.Image:
    """A row per run: its name, the query, its results; results of the query's class have a blue frame."""
    width = 2 * EDGE + (1 + len(rows[0][1].results)) * (TILE + GAP)
    height = LINE + 6 + TILE + 8 + 2 * LINE + GAP
    sheet = Image.new("RGB", (width, EDGE + height * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (name, evidence) in enumerate(rows):
        top = EDGE + number * height
        write(draw, name, EDGE, top, width - 2 * EDGE, size=15)
        top += LINE + 6
        paste(sheet, evidence.pixels, EDGE, top + 4)
        write(draw, query.label, EDGE, top + TILE + 10, TILE)
        write(draw, query.group, EDGE, top + TILE + 10 + LINE, TILE, colour=MUTED)
        for place, result in enumerate(evidence.results, 1):
            # The results are separated from the query.
            left = EDGE + GAP + place * (TILE + GAP)
            draw_result(sheet, result, left, top, is_same=result.label == query.label)
    return sheet


def draw_pairs(pairs: Sequence[tuple[tuple[Shown, Shown], Evidence]]) -> Image.Image:
    """Blocks of four: query and its map, result and its map (as CHAI Fig. 4), with their names above and below."""
    columns = min(_PAIRS_A_ROW, len(pairs))
    width, height = 2 * TILE + 4 + 2 * GAP, 2 * TILE + 4 + 2 * LINE + 8 + 2 * GAP
    rows = -(-len(pairs) // columns)
    sheet = Image.new("RGB", (EDGE + columns * width, EDGE + rows * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, ((query, result), evidence) in enumerate(pairs):
        left, top = EDGE + number % columns * width, EDGE + number // columns * height
        (nearest,) = evidence.results
        assert nearest.query_map is not None
        assert nearest.result_map is not None
        write(draw, f"query: {_name(query)}", left, top, 2 * TILE)
        top += LINE + 4
        for row, (pixels, plane) in enumerate(
            ((evidence.pixels, nearest.query_map), (nearest.pixels, nearest.result_map))
        ):
            paste(sheet, pixels, left, top + row * (TILE + 4))
            paste(sheet, np.asarray(overlay(pixels, plane)), left + TILE + 4, top + row * (TILE + 4))
        write(draw, f"result: {_name(result)}", left, top + 2 * TILE + 8, 2 * TILE)
    return sheet


def _name(shown: Shown) -> str:
    return f"{shown.label} ({shown.group})" if shown.group else shown.label


def _describe(catalogue: Catalogue, sample: int) -> Shown:
    group = int(catalogue.groups[sample])
    return Shown(
        id=sample,
        key=catalogue.keys([sample])[0],
        label=catalogue.label_name(int(catalogue.labels[sample])),
        group="" if group == NO_GROUP else catalogue.group_names[group],
    )


def _gather(trained: TrainedRun, samples: Sequence[int], k: int, *, has_maps: bool) -> list[Evidence]:
    config = trained.config
    gallery = open_selection(trained, config, "gallery", split_run(trained.catalogue, config).gallery)
    images = trained.embedder.source.fetch(np.array(samples, dtype=np.int64), None)
    return gather_evidence(trained, config, gallery, images, k, has_maps=has_maps, query_ids=samples)


@contextmanager
def _open(run: Path) -> Iterator[TrainedRun]:
    """A run's best checkpoint; RequestError for one without images."""
    trained = open_trained(run)
    try:
        if trained.config.data.features:
            raise RequestError(
                f"{run} was trained on data.features={trained.config.data.features}; the picture shows images"
            )
        yield trained
    finally:
        trained.embedder.source.close()
