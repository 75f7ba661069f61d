"""Continue with another trial's network: the step of population based training for a trial that fell behind."""

import shutil
from pathlib import Path

from fsl_dist.config import CONFIG_FILE, RunConfig, encode_config, load_run
from fsl_dist.errors import TrainingError, VersionError
from fsl_dist.training.checkpoint import CheckpointFolder, tables_of
from index.base.checksums import encode_json, read_json
from index.base.files import Owner, exists, publish_folder, remove_folder, write_atomic
from index.base.object_cache import bring
from index.base.settings import dump, merge, validate
from tune.records import Trial
from tune.space import nested

CHANGE_FILE = "change.json"
"""in a trial's folder: the number of `Trial.changes` that its run has applied"""
_TRIES = 5
"""copies that are begun: a donor that trains on prunes its older checkpoints meanwhile"""


def take_over(run: RunConfig, trial: Trial) -> None:
    """Give a trial's run the newest checkpoint of its last donor and its new settings; does nothing if it has them.

    The trial's earlier metrics are kept up to the donor's step. After a kill in between, the record of the change is
    missing, so the next call repeats it.

    Args:
        run: the trial's run with its new settings.
        trial: the trial; `changes` lists its changes.

    Raises:
        TrainingError: the donor has no checkpoint.
    """
    if not trial.changes or _done(trial.folder) >= len(trial.changes):
        return
    owner = Owner.claim(trial.folder)  # fences off an earlier process of this run
    donor = trial.folder.parent / f"{trial.changes[-1].donor:04d}"
    own = CheckpointFolder(trial.folder, keep=1, owner=owner)
    own.refresh()
    for tries_left in range(_TRIES - 1, -1, -1):
        for folder in own.finished():
            remove_folder(folder)
        try:
            _copy(donor, own)
        except OSError:
            if tries_left == 0:
                raise
        else:
            break
    stored = dump(load_run(trial.folder))
    changed = validate(RunConfig, merge(stored, nested(trial.point)), f"the point of {trial.folder}")
    owner.check()
    write_atomic(trial.folder / CONFIG_FILE, encode_config(changed))
    write_atomic(trial.folder / CHANGE_FILE, encode_json({"changes": len(trial.changes)}, trial.folder.name))


def _done(folder: Path) -> int:
    path = folder / CHANGE_FILE
    if not exists(path):
        return 0
    done = read_json(path, root=folder.parent.parent, name=folder.name).get("changes")
    if not isinstance(done, int):
        raise VersionError(
            f"{path} is damaged: changes={done} is not a whole number (remove it to copy the donor's run again)"
        )
    return done


def _copy(donor: Path, own: CheckpointFolder) -> None:
    """Copy the donor's start, best and newest checkpoints, the newest last, and the neighbour tables that they need."""
    given = CheckpointFolder(donor, keep=1, owner=None)
    given.refresh()
    latest = given.latest()
    if latest is None:
        raise TrainingError(f"{donor} has no checkpoint to continue from")
    chosen = sorted({folder for folder in (given.start(), given.best(), latest) if folder is not None})
    names = [f"mining/{name}" for name in sorted(tables_of(chosen))]
    for name in [*names, *(f"checkpoints/{folder.name}" for folder in chosen)]:
        bring(donor / name)
        final = own.run / name
        remove_folder(final)
        staging = final.with_name(f".staging-{final.name}-{own.owner.epoch if own.owner else 0}")
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(donor / name, staging)
        publish_folder(staging, final)
