"""Exact mining: neighbours of each vector in its class and in all others, compared with the matrix product that they
cost at least."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.outcome import NotHereError, Outcome, Setting, median_s, round_to, without_tf32
from benchmarks.suite.report import Table

K_SAME, M_OTHER, KEPT = 5, 5, 16
_NUMBERS = 1 << 30  # of a tile of distances: 4 GiB


def draw_long_tail(num: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [num, dim] around class centres, and labels int64 [num], ascending; class c has a share 1 / c."""
    draw = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, classes + 1)
    labels = np.sort(np.r_[np.arange(classes), draw.choice(classes, num - classes, p=shares / shares.sum())])
    centres = draw.standard_normal((classes, dim), dtype=np.float32)
    return centres[labels] + draw.standard_normal((num, dim), dtype=np.float32), labels.astype(np.int64)


def multiply_and_keep(queries: torch.Tensor, gallery: torch.Tensor, *, keeps: bool) -> None:
    """All products of queries and gallery in tiles, and of each row the best 16 (`keeps`): what any exact search
    does."""
    for part in queries.split(max(1, _NUMBERS // len(gallery))):
        products = part @ gallery.T
        if keeps:
            products.topk(KEPT, dim=1)


def measure(setting: Setting) -> Outcome:
    found = Outcome()
    num, dim, classes = (1_500, 16, 20) if setting.is_small else (1_000_000, 256, 1_000)
    asked = num if setting.is_small else 65_536
    vectors, labels = draw_long_tail(num, dim, classes)
    # Some classes whole, from the middle of the tail: blocks as in a pass over all.
    first = 0 if asked == num else int(np.searchsorted(labels, classes // 20))
    rows = slice(first, first + asked)
    products = 2.0 * asked * num * dim / 1e12
    table: list[tuple[str | float, ...]] = []

    def add(name: str, seconds: float) -> float:
        table.append((name, round_to(seconds), round_to(products / seconds), round_to(seconds * num / asked)))
        return seconds

    gallery = torch.from_numpy(vectors).to(setting.device)
    queries = gallery[rows]
    without_tf32()
    floor = add(
        "the matrix product alone, float32",
        median_s(lambda: multiply_and_keep(queries, gallery, keeps=False), setting),
    )
    add(
        f"the product and the best {KEPT} of each row, torch in tiles",
        median_s(lambda: multiply_and_keep(queries, gallery, keeps=True), setting),
    )
    if setting.is_gpu:
        without_tf32(False)
        add(
            "the same with TF32",
            median_s(lambda: multiply_and_keep(queries, gallery, keeps=True), setting),
        )
        without_tf32()
    try:
        _mine(found, add, vectors, labels, rows, floor, setting)
    except (ImportError, NotHereError) as missing:
        found.notes.append(f"mining by the index: not run: {str(missing).splitlines()[0]}")
    columns = ("", f"seconds for {asked:,} queries", "TFLOP/s of the products", f"seconds for {num:,}")
    found.tables.append(
        Table(
            f"Mining {K_SAME} of the same class and {M_OTHER} of others, {num:,} × {dim}",
            columns,
            tuple(table),
        )
    )
    return found


def _mine(found: Outcome, add, vectors, labels, rows, floor: float, setting: Setting) -> None:  # type: ignore[no-untyped-def]
    from index.config import IndexConfig
    from index.runtime import faiss
    from index.search import open_index
    from index.writing.build import build

    device = "gpu" if faiss.get_num_gpus() else "cpu"
    if setting.is_gpu and device == "cpu":
        found.notes.append("mining by the index: FAISS sees no GPU, so the index searches on the CPU")
    ids = np.arange(len(vectors))
    with tempfile.TemporaryDirectory(prefix="fsl-gpu-") as folder:
        build(Path(folder), vectors, labels, ids, IndexConfig())
        opened = open_index(Path(folder), verify=False, device=device)
        started = time.perf_counter()
        opened.search(vectors[:1], 1)
        found.notes.append(
            f"mining: the first search, which makes the copies that stay, took {time.perf_counter() - started:.2f} s"
        )

        def mine():  # type: ignore[no-untyped-def]
            return opened.neighbours(vectors[rows], labels[rows], ids[rows], K_SAME, M_OTHER)

        took = add(f"the index, index.device={device}, exact by float64", median_s(mine, setting))
        plain = median_s(lambda: opened.search(vectors[rows], M_OTHER, query_ids=ids[rows]), setting)
        add(f"the index, index.device={device}, one search without a filter", plain)
        if device == "gpu":
            found.check("mining: times the matrix product, float32", took / floor, 3.0)
        mined = mine()
    chosen = np.linspace(0, rows.stop - rows.start - 1, 64).astype(np.int64)
    wrong = 0
    for row in chosen:
        position = rows.start + row
        costs = np.square(vectors.astype(np.float64) - vectors[position]).sum(axis=1)
        costs[position] = np.inf
        for ids_found, is_allowed in (
            (mined.same_ids[row], labels == labels[position]),
            (mined.other_ids[row], labels != labels[position]),
        ):
            kept = np.flatnonzero(is_allowed)
            best = kept[np.lexsort((kept, costs[kept]))][: len(ids_found)]
            best = best[np.isfinite(costs[best])]
            wrong += list(best) != [number for number in ids_found if number >= 0]
    found.check("mining: of 64 queries' answers, other than float64 loops give", wrong, 0.0)
