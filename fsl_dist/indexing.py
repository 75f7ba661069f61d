"""From a trained run and a data set to embeddings in a file, or to a published index."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue, is_dataset
from fsl_dist.data.selection import Selection
from fsl_dist.errors import RequestError
from fsl_dist.training.ray.session import spread_over
from fsl_dist.training.trained import TrainedRun, open_trained
from index import IndexConfig, LocalIndex, ShardedIndex, open_index
from index.base.files import new_token
from index.base.object_cache import put_file, working_folder
from index.base.pieces import Progress, Spread, do_here
from index.base.settings import dump, parse_overrides, to_overrides, validate
from index.versions import check_source
from index.writing import job
from index.writing.vector_files import identify

SPLIT = "train"


@dataclass(slots=True)
class EmbedSamples:
    """Embeds samples of a data set with a run's network, in whichever process it is unpickled."""

    run: Path
    dataset: Path
    source: dict[str, str]
    """The required network and data set: a run that was trained further has another network."""
    batch_size: int
    _trained: TrainedRun | None = field(default=None, repr=False)
    known: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None = field(default=None, repr=False)
    """ids → embeddings that were made before, in this process; None: they are made here"""

    @classmethod
    def open(cls, run: Path, dataset: Path) -> "EmbedSamples":
        """Open both here; an error says what is wrong with them."""
        trained = open_trained(run, dataset=dataset)
        return cls(
            run.absolute(), dataset.absolute(), source_of(trained), trained.embedder.batch_size, trained
        )

    @property
    def trained(self) -> TrainedRun:
        """The run, opened for the data set."""
        if self._trained is None:
            self._trained = open_trained(self.run, dataset=self.dataset)
            found = source_of(self._trained)
            if found != self.source:
                raise RequestError(
                    f"{self.run} or {self.dataset} changed while they were embedded: {found}, before {self.source}; "
                    "start the build again"
                )
        return self._trained

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.trained.embedder.embed(ids) if self.known is None else self.known(ids)

    def are_missing(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [n]: which of `ids` turned out damaged, so that another image of their class was embedded in their
        place."""
        return np.isin(ids, list(self.trained.embedder.source.bad_samples))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.run, self.dataset, self.source, self.batch_size)


def source_of(trained: TrainedRun) -> dict[str, str]:
    """The `source` of an index that was made with a run on a data set."""
    return {"catalogue": trained.catalogue.fingerprint, "parameters": trained.parameters}


def build_from_run(
    run: Path,
    dataset: Path,
    out: Path,
    config: IndexConfig,
    *,
    spread: Spread = do_here,
    progress: Progress | None = None,
    known: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None = None,
) -> Path:
    """Embed the train split of `dataset` with a run's network and publish it as a version of the index `out`.

    The ids of the index are sample ids of `dataset`. A killed build resumes. Damaged images are left out, with a
    warning.

    Args:
        known: provides embeddings of this network that were computed before, instead of computing them here.

    Returns:
        The version's folder.
    """
    if is_dataset(out):
        raise RequestError(f"out={out} is a data set; name another folder for the index")
    embed = replace(EmbedSamples.open(run, dataset), known=known)
    trained = embed.trained
    selection = trained.catalogue.select(SPLIT)
    data = trained.config.data
    settings = {
        # The catalogue is in the source, and the folder may have two names.
        "data": {name: value for name, value in dump(data).items() if name != "dataset"},
        "features": identify(Path(data.features)) if data.features else "",
        "batch_size": embed.batch_size,
        "bf16": trained.embedder.use_bf16,
        "split": SPLIT,
    }
    plan = job.Plan(
        out=out,
        labels=selection.sample_labels,
        ids=selection.ids,
        dim=trained.embedder.dim,
        config=config,
        source=embed.source,
        identity={
            "settings of the run": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        },
    )
    try:
        return job.run(plan, embed=embed, spread=spread, progress=progress)
    finally:
        trained.embedder.source.close()


def check_gallery(index: ShardedIndex, trained: TrainedRun, selection: Selection) -> None:
    """Raise RequestError if an index does not contain exactly these images by this network:
    another source, or later changes."""
    check_source(index.path, index.manifest, source_of(trained))
    if index.changes.number or not np.array_equal(np.sort(index.ids), np.sort(selection.ids)):
        raise RequestError(
            f"{index.path} does not contain exactly the {len(selection)} training images of "
            f"{trained.config.data.dataset}: it was changed since it was built (build it again from the run)"
        )


def write_embeddings(trained: TrainedRun, out: Path) -> None:
    """Write the embeddings of every sample of the data set that `trained` is opened for:
    .npy float32 [num_samples, dim].

    Row = sample id. Memory use is one block of rows, for any size of the data set. Raises TrainingError, which names
    the sample, for a non-finite embedding; then no file remains.
    """
    if out.suffix != ".npy":
        raise RequestError(f"out={out} must end in .npy")
    shape = (trained.catalogue.num_samples, trained.embedder.dim)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{new_token()}")
    try:
        rows = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
        block = trained.embedder.batch_size * 64
        for start in range(0, shape[0], block):
            stop = min(start + block, shape[0])
            rows[start:stop] = trained.embedder.embed(np.arange(start, stop))
        rows.flush()
        del rows
        put_file(unfinished, out)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def embed_data(run: Path, data: Catalogue, out: Path | None) -> NDArray[np.float32]:
    """Embed every sample of a data set with a run's network: float32 [num_samples, dim], row = sample id.

    out: a .npy file to write block by block; the result is then a map of it.
    """
    with closing(open_trained(run, dataset=data.folder, version=data.version)) as trained:
        if out is None:
            return trained.embedder.embed(np.arange(data.num_samples))
        write_embeddings(trained, out)
    return np.load(out, mmap_mode="r")


def build_index_of_run(
    run: Path,
    own: Catalogue,
    out: str | os.PathLike[str],
    *,
    data: Catalogue | str | os.PathLike[str] | None,
    workers: int,
    settings: Mapping[str, object],
    progress: Progress | None,
) -> LocalIndex:
    """`Run.build_index`: the index, opened, with the names of its classes. own: the run's data set."""
    if workers < 1:
        raise RequestError(f"workers={workers} must be at least 1")
    config = validate(IndexConfig, parse_overrides(to_overrides(settings)), "the arguments")
    chosen = own if data is None else data
    folder = chosen.folder if isinstance(chosen, Catalogue) else working_folder(os.fspath(chosen))
    where = working_folder(os.fspath(out)).absolute()
    with spread_over(workers, embeds=True) as spread:
        version = build_from_run(run, folder, where, config, spread=spread, progress=progress)
    index = open_index(version)
    index.class_names = Catalogue.open(folder).class_names if folder != own.folder else own.class_names
    return index
