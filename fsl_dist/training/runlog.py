"""A run's metrics: one JSON line per step in RUN/metrics.jsonl, a copy in TensorBoard and in Ray's gauges,
read back for progress and trackers.

Each line ends with its checksum (`index.base.checksums`), which is not a metric.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fsl_dist.errors import TrainingError
from fsl_dist.training.ray.gauges import open_gauges
from index.base.checksums import decode_line, encode_line, read_lines
from index.base.errors import RequestError, VersionError
from index.base.extras import require
from index.base.files import Owner, write_atomic
from index.base.object_cache import put_appended, with_addresses

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from fsl_dist.config import RunConfig

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes a run's metrics; only the first worker has one.

    Lines after `from_step` (of an interrupted run that resumes from a checkpoint) are dropped first, by replacing the
    file: a stale process that still has the old file open writes into the removed one.
    """

    def __init__(self, config: "RunConfig", *, from_step: int, owner: Owner | None) -> None:
        run = Path(config.run.dir)
        self.owner = owner
        self._run = run
        path = run / METRICS_FILE
        if owner:
            owner.check()
        kept = [line for line in read_metrics(run) if line["step"] <= from_step]
        write_atomic(path, "".join(map(encode_line, kept)).encode())
        self._file = path.open("ab", buffering=0)
        self._board = None
        if "tensorboard" in config.run.trackers:
            self._board = _open_board(run, purge_step=from_step + 1, flush_secs=10)
        self._gauges = open_gauges({"run": with_addresses(str(run.absolute()))})
        self._last_check = 0.0

    def write(self, global_step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append one line.

        Raises StaleOwnerError when another process has taken over the run, TrainingError where the line cannot be
        written, such as on a full disk; then nothing of it is left.
        """
        # The fencing check costs a directory listing: twice per second suffices, in addition to that at each
        # checkpoint.
        if self.owner and time.monotonic() - self._last_check > 0.5:
            self.owner.check()
            self._last_check = time.monotonic()
        self._append(encode_line({"step": global_step, "epoch": epoch, **metrics}).encode())
        if self._gauges is not None:
            self._gauges.set({"step": global_step, "epoch": epoch, **metrics})
        if self._board is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        # One event for all: separate events took 0.7 ms per step.
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        try:
            self._board.file_writer.add_summary(Summary(value=values), global_step)
        except Exception as error:  # its writer thread passes on any error, such as a full disk
            logger.warning(
                "run.trackers=tensorboard: nothing more is written, %s", " ".join(str(error).split())
            )
            self._board = None

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            # Unbuffered: with a full disk a part is written, and the next call gives the reason.
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise TrainingError(
                f"{self._run / METRICS_FILE} cannot be written: {error.strerror or error}; its lines and the "
                f"checkpoints of {self._run} are kept (free some space, then resume=True continues)"
            ) from error

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._gauges is not None:
            self._gauges.close()
        if self._board is not None:
            self._board.close()
        if error is None:
            for path in (self._run / METRICS_FILE, self._run / "tensorboard"):
                put_appended(path)


def write_hparams(
    run: Path, settings: Mapping[str, bool | int | float | str], name: str, value: float
) -> None:
    """The distinguishing settings of a run and its results, for TensorBoard's table of hyperparameters."""
    board = _open_board(run)
    if board is None:
        return
    with board:
        board.add_hparams(dict(settings), {name: value}, run_name=".")
    put_appended(run / "tensorboard")


def _open_board(run: Path, **options: Any) -> "SummaryWriter | None":
    """TensorBoard's writer; None, with a log line, if TensorBoard is not installed."""
    try:
        require("tensorboard")
    except RequestError as error:
        logger.info("no TensorBoard files are written: %s", error)
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), **options)


def read_metrics(run: Path) -> list[dict]:
    """Read all lines of a run's metrics so far; a last line that is still being written is left out.

    Raises VersionError, which names the line, if one is damaged.
    """
    path = run / METRICS_FILE
    if not path.is_file():
        return []
    lines = read_lines(path, root=run)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("step"), int) or not isinstance(line.get("epoch"), int):
            raise VersionError(f"{path}, line {number}, is damaged: it has no step or no epoch")
    return lines


def last_step(run: Path) -> dict | None:
    """The newest step's line, read from the end of the file; None if there is none yet."""
    path = run / METRICS_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        # Some hundred lines: enough to find a step before the newest validations.
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().decode("utf-8", errors="ignore").split("\n")[:-1]
    for text in reversed(lines):
        if '"train/loss"' in text and text.startswith("{"):
            return decode_line(text, str(path))
    return None


def read_validations(run: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each validation that measured `metric`, in the order they were made; step 0 is the start."""
    key = f"eval/{metric}"
    return [(line["step"], line[key]) for line in read_metrics(run) if key in line]


class LineReader:
    """Reads the lines that another thread or process adds to a file, each once unless the file is replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def read(self) -> list[bytes]:
        """The complete lines added since the last call; all lines of a file that has replaced the old one."""
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                # A run that is resumed replaces the file by one without the lines after its checkpoint.
                if (facts.st_dev, facts.st_ino) != self._file or facts.st_size < self._offset:
                    self._file, self._offset = (facts.st_dev, facts.st_ino), 0
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        lines = added[: added.rfind(b"\n") + 1].splitlines()
        self._offset += sum(len(line) + 1 for line in lines)
        return lines


class RunFollower:
    """Follows a run's metrics file while another thread or process writes it."""

    def __init__(self, run: Path, metric: str) -> None:
        """metric: the validation metric to follow."""
        self.step: dict | None = None
        """metrics of the newest step; None if there is none yet"""
        self.start: float | None = None
        """validation before the first step"""
        self.validated: float | None = None
        """newest validation after it"""
        self._path = run / METRICS_FILE
        self._lines = LineReader(self._path)
        self._key = f"eval/{metric}"

    def read(self) -> bool:
        """Read the new lines; return whether there is a newer step."""
        newest = None
        for text in self._lines.read():
            if b'"train/loss"' in text:
                newest = text
            elif self._key.encode() in text and self._key in (line := self._decode(text)):
                if line["step"] == 0:
                    self.start = line[self._key]
                else:
                    self.validated = line[self._key]
        if newest is not None:
            self.step = self._decode(newest)
        return newest is not None

    def _decode(self, text: bytes) -> dict:
        return decode_line(text.decode(errors="replace"), str(self._path))

    def describe_validation(self) -> str:
        """The newest validation and that of the start, for a progress line; empty if there is none."""
        name = self._key.removeprefix("eval/")
        if self.validated is None:
            return "" if self.start is None else f"{name} {self.start:.4f} at the start"
        return f"{name} {self.validated:.4f}" + ("" if self.start is None else f" (start {self.start:.4f})")


def describe_progress(
    line: dict,
    *,
    num_epochs: int,
    num_steps: int,
    num_images: int,
    seconds: float = 0.0,
    elapsed_s: float,
    done_steps: int,
    validation: str = "",
) -> str:
    """Format a progress line: position, speed, scores, remaining time, and waiting time for data.

    line: a step's metrics; num_images and seconds: the run's limits, 0 = none; elapsed_s and done_steps: since this
    process started to train; validation: the result of `RunFollower.describe_validation`.
    """
    left_steps = float(max(num_epochs * num_steps - line["step"], 0))
    if num_images > 0:
        images_a_step = line["train/images_seen"] / line["step"]
        left_steps = min(left_steps, max(num_images - line["train/images_seen"], 0) / images_a_step)
    left_s = elapsed_s / max(done_steps, 1) * left_steps
    if seconds > 0:
        left_s = min(left_s, max(seconds - elapsed_s, 0.0))
    of_epochs = "" if seconds > 0 else f"/{num_epochs}"
    step_in_epoch = (line["step"] - 1) % num_steps + 1
    return (
        f"epoch {line['epoch'] + 1}{of_epochs}  step {step_in_epoch}/{num_steps}  "
        f"loss {line['train/loss']:.4f}  {line['time/images_per_s']:.0f} img/s  "
        + (f"{validation}  " if validation else "")
        + f"at most {_clock(left_s)} left  data wait {line['time/data_wait_s'] * 1e3:.0f} ms"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
