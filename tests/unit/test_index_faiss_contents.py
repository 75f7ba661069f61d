"""FAISS files with a right checksum and contents that no build writes: one line at opening, and every sound kind opens."""

import dataclasses
from pathlib import Path

import faiss
import numpy as np
import pytest

from index import versions
from index.base import files
from index.base.errors import VersionError
from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build

ROWS, DIM = 400, 16
VECTORS = np.random.default_rng(0).standard_normal((ROWS, DIM), dtype=np.float32)
KINDS = [
    {"kind": "ivf_flat"},
    {"kind": "ivf_flat", "metric": "inner_product"},
    {"kind": "ivf_pq", "metric": "cosine"},
    {"kind": "hnsw"},
    *(
        {"kind": "factory", "factory": factory}
        for factory in (
            "OPQ4,IVF8,PQ4x4",
            "IVF4_HNSW8,SQ8",
            "PCA8,IVF4,Flat",
            "HNSW8,SQ8",
            "PQ4x4,Refine(Flat)",
            "SQ8",
            "IVF8,PQ4x4fs",
            "LSH",
            "NSG8,Flat",
        )
    ),
]


def name_of(settings: dict) -> str:
    return "-".join(settings.values()).replace(",", "+")


@pytest.mark.parametrize("settings", KINDS, ids=name_of)
def test_every_kind_opens(tmp_path: Path, settings: dict) -> None:
    build(tmp_path, VECTORS, np.arange(ROWS) % 7, config=IndexConfig(shards=2, **settings))
    found = open_index(tmp_path).search(VECTORS[:50], 3)
    assert (found.ids >= 0).all()
    assert (found.ids[:, 0] == np.arange(50)).mean() > 0.7  # codes of a few bits miss some


def replace_faiss(out: Path, change) -> None:
    """Write `change` of the first shard's FAISS index in its place, with a right checksum in the manifest."""
    folder = versions.find_version(out)
    path = folder / versions.faiss_name(0)
    index = faiss.read_index(str(path))
    faiss.write_index(change(index) or index, str(path))
    manifest = versions.read_manifest(folder)
    record = versions.FileRecord(size_bytes=path.stat().st_size, crc32=files.crc32_of_file(path))
    changed = dataclasses.replace(manifest, files={**manifest.files, path.name: record})
    (folder / versions.MANIFEST).write_bytes(versions.encode_manifest(changed))


def set_id(value: int):
    def change(index) -> None:
        lists = faiss.extract_index_ivf(index).invlists
        cluster = next(i for i in range(lists.nlist) if lists.list_size(i))
        faiss.rev_swig_ptr(lists.get_ids(cluster), 1)[0] = value

    return change


def set_link(value: int):
    def change(index) -> None:
        faiss.rev_swig_ptr(index.hnsw.neighbors.data(), 1)[0] = value

    return change


def set_entry(value: int):
    def change(index) -> None:
        index.hnsw.entry_point = value

    return change


def other_index(description: str):
    def change(index):
        other = faiss.index_factory(DIM, description)
        other.train(VECTORS)
        other.add(VECTORS[: index.ntotal])
        return other

    return change


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("ivf_flat", set_id(10**9), "has a row outside"),
        ("ivf_flat", set_id(-1), "has a row outside"),
        ("ivf_flat", set_id(ROWS - 1), "do not contain each of 400 rows once"),
        ("hnsw", set_link(10**6), r"neighbors\[0\] = 1000000 out of range"),
        ("hnsw", set_entry(ROWS), "entry_point 400 out of range"),
        ("hnsw", other_index("IVF4,Flat"), "its parts are not those"),
        ("ivf_pq", other_index("IVF4,Flat"), "its parts are not those"),
        ("ivf_flat", other_index("IVF4,Flat"), "its parts are not those"),
    ],
)
def test_impossible_contents_are_refused_in_one_line(tmp_path: Path, kind: str, change, said: str) -> None:
    build(tmp_path, VECTORS, np.zeros(ROWS, np.int64), config=IndexConfig(kind=kind))
    replace_faiss(tmp_path, change)
    with pytest.raises(VersionError, match=said) as caught:
        open_index(tmp_path)
    assert "\n" not in str(caught.value)
