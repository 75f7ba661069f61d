"""From a trained run and a data set to embeddings in a file, or to a published index."""

from pathlib import Path

import numpy as np

from fsl_dist.errors import RequestError
from fsl_dist.training.trained import open_trained
from index import IndexConfig
from index.build import build
from index.storage import new_token


def build_from_run(run: Path, dataset: Path, out: Path, config: IndexConfig) -> Path:
    """Embed the train split of `dataset` with a run's network and publish it as a version of the index `out`.

    Returns the version's folder. Answers of the index are sample ids of `dataset`.
    """
    trained = open_trained(run, dataset=dataset)
    selection = trained.catalogue.select("train")
    vectors = trained.embedder.embed(selection.ids)
    source = {"catalogue": trained.catalogue.fingerprint, "parameters": trained.parameters}
    trained.embedder.source.close()
    return build(out, vectors, selection.sample_labels, selection.ids, config, source)


def embed_dataset(run: Path, dataset: Path, out: Path) -> tuple[Path, tuple[int, int]]:
    """Write the embeddings of every sample of `dataset` by a run's network: .npy float32 [num_samples, dim].

    Row = sample id. Memory stays at one block of rows, whatever the data set's size. Returns the file and its shape.
    """
    if out.suffix != ".npy":
        raise RequestError(f"--out {out} must end in .npy")
    trained = open_trained(run, dataset=dataset)
    shape = (trained.catalogue.num_samples, trained.embedder.dim)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{new_token()}")
    rows = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    block = trained.embedder.batch_size * 64
    for start in range(0, shape[0], block):
        stop = min(start + block, shape[0])
        rows[start:stop] = trained.embedder.embed(np.arange(start, stop))
    rows.flush()
    del rows
    unfinished.replace(out)
    trained.embedder.source.close()
    return out, shape
