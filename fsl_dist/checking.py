"""Checks of a data set and of a run as a whole, for `doctor`."""

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from fsl_dist.config import CONFIG_FILE, load_run
from fsl_dist.data.catalogue import Catalogue, is_dataset
from fsl_dist.data.catalogue_file import has_checksum, read_table, write_table
from fsl_dist.data.store import ShardStore
from index.base import files, object_cache
from index.base.checkup import Checkup
from index.checking import check_index

_EDITED = "restore it from a copy; if you edited it, remove its first line, and write_checksums=True writes a new one"


def check_dataset(folder: Path, checkup: Checkup) -> None:
    """Check every catalogue version of a data set, and the current one against the shards; reads all samples."""
    names = [name for name in files.list_folder(folder / "catalogue") if name.endswith(".arrow")]
    numbers = sorted(int(name.removesuffix(".arrow")) for name in names if name[:-6].isdigit())
    sound: dict[int, Catalogue] = {}
    for number in numbers:
        path = folder / "catalogue" / f"{number:06d}.arrow"
        before = [other for other in sound if other < number]
        go_back = f", or remove it to go back to version {before[-1]}" if before else ""
        repair = f"restore it from a copy, or pack again{go_back}"
        opened = checkup.run(path, repair, partial(Catalogue.open, folder, number))
        if opened is not None:
            sound[number] = opened
            if not has_checksum(path):
                checkup.unchecked[path] = partial(_add_checksum, path, number, folder)
    if sound:
        _check_samples(sound[max(sound)], checkup)


def _check_samples(catalogue: Catalogue, checkup: Checkup) -> None:
    from fsl_dist.data.ingest.inspection import find_damage

    store = ShardStore(catalogue)
    whole = "restore the shards from a copy, or pack again"
    checkup.run(catalogue.folder, whole, store.check_files)
    where = catalogue.locate(np.arange(catalogue.num_samples))
    sizes = np.array([shard.size_bytes for shard in catalogue.shards], dtype=np.int64)
    is_inside = (where.shard >= 0) & (where.shard < len(sizes)) & (where.offset >= 0)
    is_inside[is_inside] &= (where.offset + where.size)[is_inside] <= sizes[where.shard[is_inside]]
    if not is_inside.all():
        checkup.add(
            catalogue.folder, f"{(~is_inside).sum()} samples are outside of their shards", "pack again"
        )
        return
    few = "training skips it (data.max_bad_fraction); restore its shard from a copy, or pack again"
    for sample in checkup.run(catalogue.folder, whole, lambda: find_damage(catalogue)) or []:
        checkup.add(catalogue.folder, sample.reason, few)


def _add_checksum(path: Path, version: int, folder: Path) -> None:
    """Rewrite a catalogue with a checksum; processes that have mapped the old file are not affected."""
    table = read_table(path, version, folder)
    partial = path.with_name(f".{path.name}.{files.new_token()}.tmp")
    try:
        write_table(partial, table, table.schema.metadata, version)
        object_cache.put_file(partial, path)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_run(folder: Path) -> bool:
    """Whether `folder` is that of a run."""
    return files.exists(folder / CONFIG_FILE)


def check_run(run: Path, checkup: Checkup) -> None:
    """Check a run's files, every checkpoint, the indexes in its folder, and whether its network loads."""
    from fsl_dist.heads.head_file import HEAD_FILE, read_head
    from fsl_dist.metrics.standard_error import VALIDATION_FILE, ScoredImages
    from fsl_dist.training.runlog import METRICS_FILE, read_metrics

    config = checkup.run(run / CONFIG_FILE, _EDITED, lambda: load_run(run))
    if config is not None:
        checkup.yaml(run / CONFIG_FILE)
    if (run / METRICS_FILE).is_file():
        repair = "remove the lines that it names; checkpoints do not need them"
        if checkup.run(run / METRICS_FILE, repair, lambda: read_metrics(run)) is not None:
            checkup.lines(run / METRICS_FILE)
    if (run / VALIDATION_FILE).is_file():
        repair = "remove it; it contains the number of images that a validation scores"
        if checkup.run(run / VALIDATION_FILE, repair, lambda: ScoredImages.read(run)) is not None:
            checkup.json(run / VALIDATION_FILE, "")
    if (run / HEAD_FILE).is_file():
        repair = "remove it, and choose the head again"
        if checkup.run(run / HEAD_FILE, repair, lambda: read_head(run)) is not None:
            checkup.json(run / HEAD_FILE, "")
    are_sound = _check_checkpoints(run, checkup)
    for name in ("index", "evaluation"):
        for current in sorted((run / name).rglob("current")):
            check_index(
                current.parent,
                checkup,
                repair=f"remove {current.parent}; the run rebuilds it when needed",
            )
    for kept in sorted((run / "evaluation").rglob("*.npz")):
        repair = "remove it; the run rebuilds it when needed"
        checkup.run(kept, repair, partial(files.unpack_arrays, kept))
    if config is not None and are_sound and is_dataset(Path(config.data.dataset)):
        repair = "restore the run, or train it again"
        checkup.run(run, repair, lambda: _load(run))


def _check_checkpoints(run: Path, checkup: Checkup) -> bool:
    import torch

    from fsl_dist.training.checkpoint import FACTS, CheckpointFolder, read_checkpoint

    folders = CheckpointFolder(run, keep=1, owner=None).finished()
    before = len(checkup.findings)
    for number, folder in enumerate(folders):
        others = [*folders[:number], *folders[number + 1 :]]
        then = f"resumes from {others[-1].name}" if others else "starts again"
        repair = f"remove the folder; the run then {then}"
        found = checkup.run(folder, repair, partial(read_checkpoint, folder, torch.device("cpu")))
        if found is not None:
            checkup.json(folder / FACTS, folder.name)
            if "table" in found.method:
                check = partial(_check_table, run, found.method)
                checkup.run(folder, repair, check)
    return bool(folders) and len(checkup.findings) == before


def _check_table(run: Path, state: dict) -> None:
    from fsl_dist.methods.mining.neighbour_table import NeighbourTable

    NeighbourTable.reopen(run / "mining" / state["table"], 0, state["table_step"], state["table_crc32"])


def _load(run: Path) -> None:
    from fsl_dist.training.trained import open_trained

    with closing(open_trained(run)):
        pass
