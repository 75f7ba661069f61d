"""Checkpoints: one folder per step, published atomically, and read back without unpickling anything but tensors."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor, nn

from fsl_dist.errors import ConfigError, RequestError, TrainingError, VersionError
from fsl_dist.finite import NOT_FINITE, find_non_finite
from index.base.checksums import encode_json, read_json
from index.base.files import Owner, crc32_of_file, publish_folder, remove_folder, write_atomic
from index.base.object_cache import bring, put_appended
from index.base.settings import validate

TENSORS = "state.pt"
FACTS = "checkpoint.json"
_STAGING = ".staging-"
_WAY_OUT = "remove the folder to resume from the checkpoint before it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Position of a run between two steps."""

    epoch: int = 0
    """the epoch of the next step"""
    step: int = 0
    """the next step inside that epoch"""
    global_step: int = 0
    """optimizer steps taken"""
    images_seen: int = 0
    """images forwarded in training, over all workers"""
    seconds: float = 0.0
    """total training time in seconds, including resumed sessions;
    measured if `training.minutes` limits it, otherwise 0"""
    best_value: float = float("-inf")
    """best validation value so far; −inf = none yet"""
    best_step: int = -1
    """global step of the best value; −1 = none yet"""
    validations_since_best: int = 0
    """validations without a better value"""
    start_value: float | None = None
    """validation value before the first step; None = the run did not validate then"""
    owes_validation: bool = False
    """whether the run was stopped between a step and the validation that follows it"""
    skipped_steps: int = 0
    """steps whose outputs, loss or gradient were not finite, which changed nothing"""
    bad_in_a_row: int = 0
    """number of them since the last valid step"""

    def validated(self, value: float) -> "Progress":
        """The same position, after a validation with the score `value`."""
        if value > self.best_value:
            return replace(self, best_value=value, best_step=self.global_step, validations_since_best=0)
        return replace(self, validations_since_best=self.validations_since_best + 1)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read from disk."""

    folder: Path
    progress: Progress
    network: dict[str, Tensor]
    """the weights that learn"""
    average: dict[str, Tensor]
    """their average (training.ema), with the same names; empty if there is none"""
    optimizer: dict
    method: dict[str, Tensor | str | int]
    catalogue: str
    """fingerprint of the catalogue it was trained on"""
    crc32: int
    """of the tensors' file"""
    statistics: Tensor
    """float [world_size, n]: batch norm's running statistics of each worker of a run that was stopped within an
    epoch; [0] otherwise, or with one worker"""

    def check_catalogue(self, fingerprint: str, dataset: str) -> None:
        """Raise TrainingError if it was trained on another catalogue than that of `dataset`."""
        if self.catalogue != fingerprint:
            raise TrainingError(
                f"{self.folder} was trained on catalogue {self.catalogue[:12]}, data.dataset={dataset} is "
                f"{fingerprint[:12]} (train into a new run.dir, or point data.dataset at the data set of the run)"
            )

    @property
    def trained(self) -> dict[str, Tensor]:
        """The weights that were validated and should be used: the average if there is one."""
        return self.average or self.network


class CheckpointFolder:
    """The checkpoints of one run, under RUN/checkpoints."""

    def __init__(self, run: Path, *, keep: int, owner: Owner | None) -> None:
        self.run = run
        self.folder = run / "checkpoints"
        self.keep = keep
        self.owner = owner

    def write(
        self,
        progress: Progress,
        *,
        network: dict[str, Tensor],
        optimizer: dict,
        method: dict[str, Tensor | str | int],
        catalogue: str,
        average: dict[str, Tensor] | None = None,
        statistics: Tensor | None = None,
    ) -> Path:
        """Publish a checkpoint.

        Raises StaleOwnerError if another process has taken over the run, TrainingError if it cannot be written, for
        example on a full disk; then nothing of it remains, and the earlier checkpoints are kept.
        """
        final = self.folder / step_name(progress.global_step)
        # The owner's epoch separates the staging folders of a stale process and its successor.
        staging = self.folder / f"{_STAGING}{final.name}-{self.owner.epoch if self.owner else 0}"
        tensors = {
            "network": network,
            "average": average or {},
            "optimizer": optimizer,
            "method": {name: value for name, value in method.items() if isinstance(value, Tensor)},
            **({} if statistics is None else {"statistics": statistics}),
        }
        try:
            self._publish(staging, final, tensors, progress, method, catalogue)
        except OSError as error:
            raise TrainingError(
                f"the checkpoint {final} cannot be written: {error.strerror or error}; {self._describe_kept()} "
                "(free some space, then resume=True continues)"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return final

    def _describe_kept(self) -> str:
        latest = self.latest()
        return "there is no earlier one" if latest is None else f"{latest} is kept"

    def _publish(
        self,
        staging: Path,
        final: Path,
        tensors: dict,
        progress: Progress,
        method: dict[str, Tensor | str | int],
        catalogue: str,
    ) -> None:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_tensors(tensors, staging / TENSORS)
        facts = {
            "progress": {key: value for key, value in asdict(progress).items() if value != float("-inf")},
            "method": {name: value for name, value in method.items() if not isinstance(value, Tensor)},
            "catalogue": catalogue,
            "crc32": crc32_of_file(staging / TENSORS),
        }
        write_atomic(staging / FACTS, encode_json(facts, final.name))
        if self.owner:
            self.owner.check()
        for name in ("metrics.jsonl", "tensorboard"):  # what leads up to it, before it
            put_appended(self.run / name)
        # A checkpoint of this step by a run that was then restarted: the same state, but written before the
        # restart; the newer one replaces it.
        remove_folder(final)
        publish_folder(staging, final)

    def sweep(self) -> None:
        """Remove half-written files of killed processes. Only the owner may: earlier writers are fenced off."""
        for staging in self.folder.glob(f"{_STAGING}*"):
            shutil.rmtree(staging, ignore_errors=True)

    def go_back(self, step: int) -> Path:
        """Remove the checkpoints after `step`, the newest first, so that the run resumes from it; return its folder.

        Raises RequestError, which lists the existing checkpoints, if there is none of this step.
        """
        finished = self.finished()
        folder = self.folder / step_name(step)
        if folder not in finished:
            names = ", ".join(str(read_progress(one).global_step) for one in finished) or "none"
            raise RequestError(f"from_step={step} is not a checkpoint of {self.run}; existing ones: {names}")
        read_checkpoint(folder, torch.device("cpu"))  # verify it before any other is removed
        for newer in reversed(finished[finished.index(folder) + 1 :]):
            remove_folder(newer)
        return folder

    def prune(self) -> list[Path]:
        """Remove all but the newest `keep` checkpoints, the best one and the start; return the remaining ones."""
        best = self.best()
        finished = self.finished()
        stay = [
            folder
            for number, folder in enumerate(finished)
            if number >= len(finished) - self.keep or folder in (best, self.folder / START)
        ]
        for folder in finished:
            if folder not in stay:
                remove_folder(folder)
        return stay

    def refresh(self) -> None:
        """Update the list of checkpoints of a run at an object store; `read_checkpoint` downloads the files."""
        bring(self.folder, wanted=lambda name: name.endswith(f"/{FACTS}"))

    def finished(self) -> list[Path]:
        """All published checkpoints, oldest first."""
        return sorted(folder for folder in self.folder.glob("step-*") if (folder / FACTS).is_file())

    def start(self) -> Path | None:
        """The checkpoint before the first step, which a run that validates keeps; None if there is none."""
        folder = self.folder / START
        return folder if (folder / FACTS).is_file() else None

    def latest(self) -> Path | None:
        """The newest published checkpoint, or None."""
        finished = self.finished()
        return finished[-1] if finished else None

    def best(self) -> Path | None:
        """The checkpoint of the best validation, which the newest one names; None when there was none."""
        latest = self.latest()
        if latest is None:
            return None
        folder = self.folder / step_name(read_progress(latest).best_step)
        return folder if (folder / FACTS).is_file() else None


class _Writing:
    """A file that remembers why it could not be written: torch raises a RuntimeError without the reason."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_tensors(tensors: dict, path: Path) -> None:
    """`torch.save`, forced to disk; raises OSError, with the system's reason, if it cannot be written."""
    with path.open("wb", buffering=0) as file:
        writing = _Writing(file)
        try:
            torch.save(tensors, cast("IO[bytes]", writing))
        except (RuntimeError, OSError) as error:
            if writing.error is None:
                raise
            raise OSError(writing.error.errno, writing.error.strerror, str(path)) from error
        os.fsync(file.fileno())


def step_name(global_step: int) -> str:
    """Name of the checkpoint after `global_step` optimizer steps."""
    return f"step-{global_step:08d}"


START = step_name(0)
"""the network before its first step: no larger than the network, since an optimizer without a step has no state"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """The content of `checkpoint.json`; its checksum is verified when it is read,
    and binds it to the name of its folder."""

    progress: Progress
    method: dict[str, str | int]
    """the method's state without its tensors"""
    catalogue: str
    crc32: int
    """of the tensors' file"""


def read_progress(folder: Path) -> Progress:
    """Read the progress of a checkpoint, without its tensors. Raises TrainingError if its file is damaged."""
    return _read_facts(folder).progress


def _read_facts(folder: Path) -> _Facts:
    path = folder / FACTS
    try:
        facts = validate(_Facts, read_json(path, root=folder.parent.parent, name=folder.name), str(path))
    except (VersionError, ConfigError) as error:
        raise TrainingError(f"{error} ({_WAY_OUT})") from None
    if step_name(facts.progress.global_step) != folder.name:
        raise TrainingError(
            f"{path} is that of step {facts.progress.global_step}: the file was swapped ({_WAY_OUT})"
        )
    return facts


def tables_of(checkpoints: list[Path]) -> set[str]:
    """Names of the neighbour tables that `checkpoints` need."""
    facts = map(_read_facts, checkpoints)
    return {name for fact in facts for name in tables_in(fact.method)}


def tables_in(method_state: Mapping[str, object]) -> set[str]:
    """Names of the neighbour tables that a method's state needs: the active one, and the one under way."""
    return {str(method_state[key]) for key in ("table", "pending") if key in method_state}


def read_checkpoint(folder: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint; raises TrainingError when a file of it is missing or damaged."""
    bring(folder)
    facts = _read_facts(folder)
    if not (folder / TENSORS).is_file():
        raise TrainingError(f"{folder / TENSORS} is missing ({_WAY_OUT})")
    if crc32_of_file(folder / TENSORS) != facts.crc32:
        raise TrainingError(
            f"{folder / TENSORS} is damaged: its checksum is not the one in {FACTS} ({_WAY_OUT})"
        )
    tensors = torch.load(folder / TENSORS, map_location=device, weights_only=True)
    return Checkpoint(
        folder,
        facts.progress,
        tensors["network"],
        tensors.get("average", {}),
        tensors["optimizer"],
        tensors["method"] | facts.method,
        facts.catalogue,
        facts.crc32,
        tensors.get("statistics", torch.zeros(0)),
    )


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load the weights of the checkpoint `folder`. Raises TrainingError if they are not finite,
    or those of another network."""
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TrainingError(
            f"{folder / TENSORS} does not fit the network that the run's configuration describes: {reason}"
        ) from None
    check_weights(network, folder)


def check_weights(network: nn.Module, folder: Path) -> None:
    """Raise TrainingError, which names the tensor, where the weights that came from the checkpoint `folder` are not
    finite."""
    if bad := find_non_finite(network):
        raise TrainingError(
            f"{folder / TENSORS}: the tensor {bad} {NOT_FINITE}: the run has diverged ({_WAY_OUT})"
        )
