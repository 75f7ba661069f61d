"""Passes over all training images: when a pass starts, when it takes effect, and its state in a checkpoint.

A pass that starts at step s takes effect at exactly step s + `mining.refresh_lag`, regardless of who runs it and how
long it takes: the run is a function of its configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fsl_dist.errors import RequestError
from fsl_dist.methods.mining.config import MiningConfig
from fsl_dist.methods.mining.neighbour_table import WEIGHTS, is_whole
from index.base.files import new_token

if TYPE_CHECKING:
    from torch import Tensor

    from fsl_dist.distributed import WorkerGroup
    from fsl_dist.methods.method import TrainingIndex


@dataclass(frozen=True, slots=True)
class Pass:
    """A table under RUN/mining, made or in the making."""

    folder: Path
    step: int
    """optimizer step whose parameters it is made with"""


class Passes:
    """The passes of a run, one at a time.

    Args:
        mining: `mining.*`.
        tables: the folder for the tables.
        default_steps: steps between two passes with mining.refresh_steps=auto; 0: only the first one.
        num_rows: number of training images.
        num_same: K of a table of neighbours; with `num_other` 0: a table of embeddings.
        num_other: M.

    Raises:
        RequestError: the lag is at least the number of steps between two passes.
    """

    def __init__(
        self,
        mining: MiningConfig,
        tables: Path,
        *,
        default_steps: int,
        num_rows: int,
        num_same: int = 0,
        num_other: int = 0,
    ) -> None:
        self.steps = default_steps if mining.refresh_steps == "auto" else mining.refresh_steps
        self.lag = mining.refresh_lag
        if self.steps and self.lag >= self.steps:
            raise RequestError(
                f"mining.refresh_lag={self.lag} must be below the {self.steps} steps between two passes (with "
                "mining.refresh_steps=auto, an epoch of decoded neighbours)"
            )
        self.tables = tables
        self.num_rows = num_rows
        self.widths = (num_same, num_other)
        self.pending: Pass | None = None
        self.has_taken_effect = False
        self._is_restored = False

    def is_due(self, global_step: int) -> bool:
        """Whether a pass starts or takes effect before this step;
        true at once if a checkpoint contains a running one."""
        takes_effect = self.pending is not None and global_step >= self.pending.step + self.lag
        return (
            self._starts_at(global_step)
            or takes_effect
            or self._starts_at(global_step - self.lag)
            or self._is_restored
        )

    def _starts_at(self, global_step: int) -> bool:
        return global_step == 0 or (self.steps > 0 and global_step > 0 and global_step % self.steps == 0)

    def advance(self, global_step: int, index: TrainingIndex, group: WorkerGroup) -> Pass | None:
        """Start the pass that is due; return the finished pass that takes effect now, or None. Collective."""
        if self._is_restored:
            self._restart(index, group)
        if self._starts_at(global_step):
            self.pending = Pass(self._new_folder(global_step, group), global_step)
            index.start_table(self.pending.folder, *self.widths)
        if self.pending is None or (self.has_taken_effect and global_step < self.pending.step + self.lag):
            return None
        finished, self.pending, self.has_taken_effect = self.pending, None, True
        index.finish_table(finished.folder)
        return finished

    def _restart(self, index: TrainingIndex, group: WorkerGroup) -> None:
        """Resume the pass of a checkpoint: reuse its table if it is complete, otherwise rebuild it from its weights."""
        assert self.pending is not None
        self._is_restored = False
        old = self.pending
        whole = group.is_first and is_whole(old.folder, self.num_rows)
        if not group.share_text("whole" if whole else ""):
            self.pending = replace(old, folder=self._new_folder(old.step, group))
            index.start_table(self.pending.folder, *self.widths, old.folder / WEIGHTS)

    def _new_folder(self, step: int, group: WorkerGroup) -> Path:
        # A separate folder: parts of a killed attempt, perhaps by other workers, must not be mixed in.
        return self.tables / f"step-{step:08d}-{group.share_text(new_token())}"

    def state(self) -> dict[str, Tensor | str | int]:
        """The state for a checkpoint: whether a pass has taken effect, and the running pass."""
        state: dict[str, Tensor | str | int] = {"has_taken_effect": int(self.has_taken_effect)}
        if self.pending is not None:
            state |= {"pending": self.pending.folder.name, "pending_step": self.pending.step}
        return state

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Restore the result of `state`."""
        self.has_taken_effect = bool(state["has_taken_effect"])
        if "pending" in state:
            name, step = state["pending"], state["pending_step"]
            assert isinstance(name, str)
            assert isinstance(step, int)
            self.pending = Pass(self.tables / name, step)
            self._is_restored = True
