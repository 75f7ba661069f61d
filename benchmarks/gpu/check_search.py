"""FAISS on a GPU: the same answers as on the CPU on every kind and filter, and what it makes of a selector."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.outcome import Outcome, Setting, median_s, round_to
from benchmarks.suite.report import Table

_KINDS: dict[str, dict[str, Any]] = {
    "flat": {},
    "ivf_flat": {"nprobe": 8, "nlist": 16},
    "ivf_pq": {"nprobe": 8, "nlist": 16, "pq_m": 8, "pq_bits": 8},
}
_LEAST_ALIKE = {"flat": 1.0, "ivf_flat": 0.999, "ivf_pq": 0.9}


def measure(setting: Setting) -> Outcome:
    from index.runtime import faiss

    found = Outcome()
    has_gpu = faiss.get_num_gpus() > 0
    device = "gpu" if has_gpu else "cpu"
    if not has_gpu:
        found.notes.append("search: FAISS sees no GPU; exact search on the CPU is used instead")
    draw = np.random.default_rng(1)
    num, dim, classes = (1_200, 16, 6) if setting.is_small else (200_000, 128, 200)
    labels = np.sort(draw.integers(0, classes, num)).astype(np.int64)
    vectors = (draw.normal(size=(classes, dim))[labels] + draw.normal(size=(num, dim)) + 5).astype(np.float32)
    ids = draw.permutation(num).astype(np.int64)
    rows = draw.choice(num, 100 if setting.is_small else 5_000, replace=False)
    found.tables.append(_compare(found, vectors, labels, ids, rows, device, setting))
    found.tables.append(_selectors(vectors, has_gpu))
    if has_gpu:
        found.tables.append(_two_ways(found, vectors, setting))
    return found


def _compare(found: Outcome, vectors, labels, ids, rows, device: str, setting: Setting) -> Table:  # type: ignore[no-untyped-def]
    """Every kind, metric and filter, on the GPU and on the CPU."""
    from index.base.errors import RequestError
    from index.config import IndexConfig
    from index.search import open_index
    from index.writing.build import build

    queries, own, num = vectors[rows], labels[rows], len(vectors)
    spans = np.tile(np.array([[num // 4, num // 2]]), (len(rows), 1))
    filters: dict[str, dict[str, Any]] = {
        "none": {},
        "same_class": {"same_class": own},
        "other_class": {"other_class": own},
        "include_ids": {"include_ids": spans},
        "exclude_ids": {"exclude_ids": spans},
        "other_class, exclude_ids": {"other_class": own, "exclude_ids": spans},
    }
    table: list[tuple[str | float, ...]] = []
    for kind, options in _KINDS.items():
        if kind == "ivf_pq" and device == "cpu":
            options = {**options, "pq_bits": 4}  # a GPU takes 8 bits alone, and training those takes seconds
        for metric in ("l2", "inner_product") if setting.is_small else ("l2", "inner_product", "cosine"):
            with tempfile.TemporaryDirectory(prefix="fsl-gpu-") as folder:
                build(Path(folder), vectors, labels, ids, IndexConfig(kind=kind, metric=metric, **options))
                on_cpu = open_index(Path(folder), verify=False)
                try:
                    on_gpu = open_index(Path(folder), verify=False, device=device)
                except RequestError as error:
                    found.check(f"search: {kind}, {metric} opens on a GPU", 1.0, 0.0, str(error))
                    continue
                alike, took = [], []
                for name, options_of in filters.items():
                    # A filter leaves a GPU's clusters aside, so the answer is exact there.
                    exact = kind == "flat" or name != "none" or device == "cpu"
                    wanted = on_cpu.search(queries, 10, query_ids=ids[rows], exact=exact, **options_of)
                    answer = on_gpu.search(
                        queries, 10, query_ids=ids[rows], exact=exact and device == "cpu", **options_of
                    )
                    # Ties and rounding: who is as near as the one wanted is right.
                    is_alike = (answer.ids == wanted.ids) | np.isclose(
                        answer.distances, wanted.distances, rtol=1e-6
                    )
                    alike.append(float(is_alike.mean()) if exact or kind != "ivf_pq" else 1.0)
                    took.append(
                        round_to(
                            1000
                            * median_s(
                                lambda o=options_of, index=on_gpu: index.search(queries, 10, **o), setting
                            )
                        )
                    )
                    if not exact:
                        near = float(is_alike.mean())
                        found.check(
                            f"search: {kind}, {metric}, no filter: share of neighbours other than on the CPU",
                            1 - near,
                            1 - _LEAST_ALIKE[kind],
                        )
                found.check(
                    f"search: {kind}, {metric}: largest share other than on the CPU over the filters",
                    1 - min(alike),
                    0.001 if kind == "ivf_flat" else 0.0,
                )
            table.append((f"{kind}, {metric}", *took))
    return Table(
        f"Milliseconds for {len(rows)} queries of {num:,} × {vectors.shape[1]}, k 10, index.device={device}",
        ("", *filters),
        tuple(table),
    )


def _selectors(vectors: np.ndarray, has_gpu: bool) -> Table:
    """What FAISS's own indexes make of a selector that lets the first half through."""
    from index.runtime import faiss

    half, dim = len(vectors) // 2, vectors.shape[1]
    selector = faiss.IDSelectorRange(0, half)
    table: list[tuple[str | float, ...]] = []
    for described in ("Flat", "IVF32,Flat"):
        index = faiss.index_factory(dim, described)
        index.train(vectors)
        index.add(vectors)
        places = {"CPU": lambda index=index: index}
        if has_gpu:
            for name, use_cuvs in (("GPU", False), ("GPU, cuVS", True)):

                def upload(index: Any = index, use_cuvs: bool = use_cuvs) -> Any:
                    options = faiss.GpuClonerOptions()
                    options.use_cuvs = use_cuvs
                    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)

                places[name] = upload
        for name, place in places.items():
            make = faiss.SearchParametersIVF if "IVF" in described else faiss.SearchParameters
            try:
                _, rows = place().search(vectors[-64:], 5, params=make(sel=selector))
                verdict = "honoured" if (rows < half).all() else "ignored"
            except RuntimeError as error:
                verdict = f"refused: {' '.join(str(error).split())[-60:]}"
            table.append((f"{described} on {name}", verdict))
    return Table("What FAISS makes of a selector", ("", "a range"), tuple(table))


def _two_ways(found: Outcome, vectors: np.ndarray, setting: Setting) -> Table:
    """FAISS's own brute force on the GPU and cuVS's, against each other; and where the GPU overtakes the CPU."""
    from index.runtime import faiss

    resources, table = faiss.StandardGpuResources(), []
    answers = {}
    for name, use_cuvs in (("FAISS", False), ("cuVS", True)):

        def search(use_cuvs: bool = use_cuvs) -> Any:
            return faiss.knn_gpu(resources, vectors[:4096], vectors, 16, use_cuvs=use_cuvs)

        try:
            answers[name] = search()[1]
        except RuntimeError as error:
            found.notes.append(f"search: {name} refuses brute force: {str(error)[-100:]}")
            continue
        table.append((f"{name}, 4,096 queries", round_to(1000 * median_s(search, setting))))
    if len(answers) == 2:
        found.check(
            "search: share of neighbours in which cuVS and FAISS differ",
            float((answers["FAISS"] != answers["cuVS"]).mean()),
            0.001,
        )
    for rows in (64, 256, 512, 1024, 4096):
        some = np.ascontiguousarray(vectors[:rows])
        for name, use in (("CPU", faiss.knn), ("GPU", lambda *a: faiss.knn_gpu(resources, *a))):
            took = median_s(lambda use=use, some=some: use(some, some, 16), setting)
            table.append((f"a class of {rows} against itself, {name}", round_to(1000 * took)))
    return Table("Milliseconds of brute force, vectors uploaded each time", ("", "ms"), tuple(table))
