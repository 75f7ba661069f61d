"""Both minings of deep kNN, given the same embeddings: the same neighbours, and the same loss where the batch is the data set."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.selection import Selection
from fsl_dist.losses.deep_knn import batch_neighbours, deep_knn_loss
from fsl_dist.methods.mining.neighbour_table import NeighbourTable, mine_part
from fsl_dist.samplers.neighbourhood import gather_neighbourhood
from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build


@settings(deadline=None, max_examples=30)
@given(
    num=st.integers(2, 40),
    num_classes=st.integers(1, 6),
    k=st.integers(1, 6),
    m=st.integers(1, 6),
    parts=st.integers(1, 3),
    is_coarse=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_batch_and_dataset_mining_agree_where_the_batch_is_the_data_set(
    num: int, num_classes: int, k: int, m: int, parts: int, is_coarse: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num, 3)).astype(np.float32)
    if is_coarse:  # few distinct points: ties everywhere
        vectors = vectors.round()
    ids = np.sort(rng.permutation(200)[:num])
    labels = np.sort(rng.integers(num_classes, size=num))
    selection = Selection.from_labels(ids, labels)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "index", vectors, labels, ids, IndexConfig(metric="l2"))
        index = open_index(Path(folder) / "index")
        edges = np.linspace(0, num, parts + 1).astype(int).tolist()
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            mine_part(Path(folder) / "table", number, index, selection, slice(start, stop), k, m)
        mined_same, mined_other = NeighbourTable.open(Path(folder) / "table", k, 0).rows(np.arange(num))
    embeddings = torch.from_numpy(vectors)
    same, other = batch_neighbours(embeddings, torch.from_numpy(labels), torch.from_numpy(ids), k, m)
    id_of = np.append(ids, -1)  # position −1 is no neighbour
    assert id_of[same.numpy()].tolist() == mined_same.tolist()
    assert id_of[other.numpy()].tolist() == mined_other.tolist()

    in_batch, active = deep_knn_loss(embeddings, torch.arange(num), same, other, 1.0)
    # All anchors in one step, in any order, each image once: the batch is the data set.
    order = rng.permutation(num)
    hood = gather_neighbourhood(ids[order], mined_same[order], mined_other[order])
    assert sorted(hood.ids.tolist()) == ids.tolist()
    row_of = np.searchsorted(ids, hood.ids)
    mined, mined_active = deep_knn_loss(
        embeddings[torch.from_numpy(row_of)],
        *map(torch.from_numpy, (hood.anchor, hood.same, hood.other)),
        1.0,
    )
    assert mined.item() == pytest.approx(in_batch.item(), rel=1e-6, abs=1e-7)
    assert mined_active.item() == pytest.approx(active.item(), abs=1e-6)
