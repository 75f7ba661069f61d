"""From a trained run and a data set to embeddings in a file, or to a published index."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import is_dataset
from fsl_dist.data.selection import Selection
from fsl_dist.errors import RequestError
from fsl_dist.training.trained import TrainedRun, open_trained
from index import IndexConfig, ShardedIndex
from index.base.files import new_token
from index.base.object_cache import put_file
from index.base.pieces import Progress, Spread, do_here
from index.base.settings import dump
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
    """What the network and the data set must be: a run that is trained further has another network."""
    batch_size: int
    _trained: TrainedRun | None = field(default=None, repr=False)
    known: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None = field(default=None, repr=False)
    """ids → embeddings that were made before, in this process; None: they are made here"""

    @classmethod
    def open(cls, run: Path, dataset: Path) -> "EmbedSamples":
        """Open them here, which says what is wrong with either."""
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

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.run, self.dataset, self.source, self.batch_size)


def source_of(trained: TrainedRun) -> dict[str, str]:
    """What an index made with a run on a data set says of its source."""
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

    known: gives embeddings of this network that were made before, in place of those made here.
    Returns the version's folder. Answers of the index are sample ids of `dataset`. A build that was killed resumes.
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
    """Refuse an index that does not hold exactly these images by this network (RequestError): one made with another, or changed since."""
    check_source(index.path, index.manifest, source_of(trained))
    if index.changes.number or not np.array_equal(np.sort(index.ids), np.sort(selection.ids)):
        raise RequestError(
            f"{index.path} does not hold the {len(selection)} training images of {trained.config.data.dataset} and nothing else: "
            "it was changed since it was built (build it again from the run)"
        )


def write_embeddings(trained: TrainedRun, out: Path) -> None:
    """Write the embeddings of every sample of the data set that `trained` is opened for: .npy float32 [num_samples, dim].

    Row = sample id. Memory stays at one block of rows, whatever the data set's size. Raises TrainingError, which names the
    sample, for an embedding that is not finite; then nothing is left.
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
