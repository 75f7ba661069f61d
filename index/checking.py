"""A check of an index as a whole: every version's files, its changes, and whether it answers."""

from pathlib import Path

import numpy as np

from index import changes, versions
from index.base import files
from index.base.checkup import Checkup
from index.search import open_index


def is_index(folder: Path) -> bool:
    """Whether `folder` is that of an index."""
    return files.exists(folder / versions.CURRENT) or (folder / versions.VERSIONS).is_dir()


def check_index(out: Path, checkup: Checkup, *, repair: str = "") -> None:
    """Read all bytes of the index `out` and search each of its versions. repair: what to do, where it is made of something else."""
    numbers = versions.list_versions(out)
    sound = [number for number in numbers if _check_version(out, number, checkup, repair)]
    go_back = f"roll_back({out}, to={sound[-1]}) makes version {sound[-1]} current" if sound else ""
    current = checkup.run(
        out / versions.CURRENT,
        repair or go_back or "build the index again",
        lambda: versions.find_version(out),
    )
    if current is not None and not files.read_text(out / versions.CURRENT).split()[1:]:
        number = versions.current_version(out)
        checkup.unchecked[out / versions.CURRENT] = lambda: files.write_atomic(
            out / versions.CURRENT, versions.encode_current(number)
        )


def _check_version(out: Path, number: int, checkup: Checkup, repair: str) -> bool:
    folder = out / versions.VERSIONS / versions.version_name(number)
    others = [other for other in versions.list_versions(out) if other != number]
    way_out = repair or (
        f"build the index again, or roll_back({out}, to=…) to a version that is whole, and remove {folder}"
        if others
        else "build the index again"
    )
    before = len(checkup.findings)
    manifest = checkup.run(folder / versions.MANIFEST, way_out, lambda: versions.read_manifest(folder))
    if manifest is None:
        return False
    checkup.json(folder / versions.MANIFEST, versions.MANIFEST)
    for name in manifest.files:
        checkup.run(
            folder / name,
            way_out,
            lambda name=name: versions.check_files(folder, manifest, verify=True, only=(name,)),
        )
    if len(checkup.findings) > before:
        return False
    checkup.run(folder / versions.CHANGES, way_out, lambda: changes.Contents(folder, manifest))
    if len(checkup.findings) == before:
        checkup.run(folder, way_out, lambda: _search(folder))
    return len(checkup.findings) == before


def _search(folder: Path) -> None:
    """Some vectors of the version find themselves."""
    index = open_index(folder, verify=False, device="cpu")
    if not index.num_vectors:
        return
    rows = np.linspace(0, index.manifest.num_vectors - 1, min(8, index.manifest.num_vectors)).astype(np.int64)
    queries = np.concatenate([_vector(folder, index.manifest, int(row)) for row in rows])
    index.search(queries, 1)


def _vector(folder: Path, manifest: versions.Manifest, position: int) -> np.ndarray:
    shard = int(np.searchsorted(manifest.shard_starts, position, side="right")) - 1
    start, _ = manifest.shard_range(shard)
    return np.array(versions.read_shard(folder, manifest, shard)[position - start][None])
