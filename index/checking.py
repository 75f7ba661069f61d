"""A check of an index as a whole: every version's files, its changes, and whether it answers."""

from functools import partial
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
    """Read all bytes of the index `out` and search each of its versions. repair: advice for an index that is built
    from other data."""
    checks = {number: _check_version(out, number) for number in versions.list_versions(out)}
    sound = [number for number, check in checks.items() if not check.findings]
    go_back = f"roll_back({out}, to={sound[-1]}) makes version {sound[-1]} current" if sound else ""
    for number, check in checks.items():
        folder = out / versions.VERSIONS / versions.version_name(number)
        way_out = repair or f"{go_back or 'build the index again'}; then remove {folder}"
        checkup.num_checked += check.num_checked
        checkup.unchecked |= check.unchecked
        for finding in check.findings:
            checkup.add(Path(finding.path), finding.problem, way_out)
    current = out / versions.CURRENT
    found = checkup.run(
        current, repair or go_back or "build the index again", lambda: versions.find_version(out)
    )
    if found is not None and not files.read_text(current).split()[1:]:
        number = versions.current_version(out)
        checkup.unchecked[current] = lambda: files.write_atomic(current, versions.encode_current(number))


def _check_version(out: Path, number: int) -> Checkup:
    folder = out / versions.VERSIONS / versions.version_name(number)
    checkup = Checkup()
    path = folder / versions.MANIFEST
    manifest = checkup.run(path, "", lambda: versions.read_manifest(folder))
    if manifest is None:
        return checkup
    checkup.json(path, versions.MANIFEST)
    for name in manifest.files:
        check = partial(versions.check_files, folder, manifest, verify=True, only=(name,))
        checkup.run(folder / name, "", check)
    if not checkup.findings:
        checkup.run(folder / versions.CHANGES, "", lambda: changes.Contents(folder, manifest))
    if not checkup.findings:
        checkup.run(folder, "", lambda: _search(folder))
    return checkup


def _search(folder: Path) -> None:
    """Search for some vectors of the version."""
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
