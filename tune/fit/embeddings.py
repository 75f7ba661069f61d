"""Embeddings of a fit's runs, cached in its folder: a resumed fit embeds nothing again."""

import io
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.heads import Embedded
from fsl_dist.training.trained import open_trained
from index.base.files import write_atomic

_Kept = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None]
"""ids int64 [n], vectors float32 [n, dim], logits float32 [n, C]"""


def embed_run(run: Path, ids: NDArray[np.int64], catalogue: Catalogue, kept: Path) -> Embedded:
    """Embed images with a run's network, with its classifier's logits if it has one.

    Args:
        run: its folder.
        ids: int64 [n]: sample ids.
        catalogue: the data set.
        kept: cache file of this run's embeddings; missing ones are added.

    Returns:
        The embeddings, in the order of `ids`.
    """
    known = _read(kept)
    missing = ids if known is None else ids[~np.isin(ids, known[0])]
    if known is None or len(missing):
        with closing(open_trained(run)) as trained:
            vectors = trained.embedder.embed(missing)
            has_classifier = trained.config.method.traits.has_classifier
            logits = trained.embedder.classify(vectors) if has_classifier and len(missing) else None
        known = (missing, vectors, logits) if known is None else _join(known, (missing, vectors, logits))
        _write(kept, known)
    return rows_of(as_embedded(catalogue, *known), ids)


def as_embedded(
    catalogue: Catalogue,
    ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    logits: NDArray[np.float32] | None,
) -> Embedded:
    """Embeddings with the labels and groups of a data set."""
    has_groups = len(catalogue.group_names) > 0
    return Embedded(
        ids=ids,
        vectors=vectors,
        labels=catalogue.labels[ids],
        logits=logits,
        groups=catalogue.groups[ids] if has_groups else None,
    )


def rows_of(embedded: Embedded, ids: NDArray[np.int64]) -> Embedded:
    """Those of `ids`, in their order."""
    order = np.argsort(embedded.ids, kind="stable")
    return embedded.rows(order[np.searchsorted(embedded.ids[order], ids)])


def _join(first: _Kept, second: _Kept) -> _Kept:
    logits = None
    if first[2] is not None and second[2] is not None:
        logits = np.concatenate([first[2], second[2]])
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]]), logits


def _read(path: Path) -> _Kept | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["ids"], stored["vectors"], stored.get("logits", None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing, or in another format than the one written below


def _write(path: Path, kept: _Kept) -> None:
    ids, vectors, logits = kept
    packed = io.BytesIO()
    arrays: dict[str, Any] = {"ids": ids, "vectors": vectors} | ({} if logits is None else {"logits": logits})
    np.savez(packed, **arrays)
    write_atomic(path, packed.getvalue())
