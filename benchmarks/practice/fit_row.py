"""`fsl-dist fit` on the same packed data, the same backbone and image size, with the seconds of plain fine-tuning."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.practice.outcome import Job, Outcome, Result
from benchmarks.practice.scores import Score
from benchmarks.practice.spent import Spent
from fsl_dist.errors import TrainingError

if TYPE_CHECKING:
    from tune.fit.records import FitRecord, ScoreRecord


def run_fit(job: Job) -> Outcome:
    """The command in a process of its own, as a user starts it; an interrupted one resumes.

    Raises:
        TrainingError: the command failed; its last line is in the message.
    """
    from tune.fit.records import FitRecord

    prepared = job.prepared
    out = prepared.work / f"fit-{job.seed}"
    settings = [
        "backbone.name=mobilenet_v2",
        f"backbone.weights={prepared.weights.resolve()}",
        f"data.image_size={prepared.set.image_size}",
        *([] if prepared.set.has_flip else ["data.flip=false"]),
    ]
    command = [
        *(sys.executable, "-m", "cluster.cli", "fit", str(prepared.data.folder), *settings),
        *("--minutes", f"{job.budget_s / 60:.3f}", "--seed", str(job.seed), "--out", str(out), "--resume", "--json"),
    ]  # fmt: skip
    done = subprocess.run(_with_budget_of(out, command), capture_output=True, text=True, check=False)
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), "no message").removeprefix("error: ")
        raise TrainingError(
            f"fsl-dist fit failed on {prepared.set.name} with exit code {done.returncode}: {last}"
        )
    outcome = read_outcome(FitRecord.read(out))
    shutil.rmtree(out)  # a fit of another version would be taken for this one's
    return outcome


def read_outcome(record: "FitRecord") -> Outcome:
    """The chosen candidate of a fit as a row; images are those of all its runs."""
    chosen = record.final
    if chosen.test is None:
        raise TrainingError(f"fsl-dist fit scored no test image of {record.profile.dataset}")
    images = {one.run: one.images_seen for one in record.candidates}
    val = None if chosen.validation is None else _score(chosen.validation)
    result = Result(chosen.name, val, partial(_score, chosen.test))
    return Outcome(
        Spent(sum(record.spent_s.values()), None), sum(images.values()), {"": result}, Spent(cpu_s=None)
    )


def _score(found: "ScoreRecord") -> Score:
    return Score(found.acc, found.mcr)


def _with_budget_of(out: Path, command: list[str]) -> list[str]:
    """The command with the minutes of an interrupted fit in `out`: it is resumed as it was started."""
    from tune.fit.config import FIT_FILE, read_stored

    if not (out / FIT_FILE).exists():
        return command
    place = command.index("--minutes") + 1
    return [*command[:place], str(read_stored(out).minutes), *command[place + 1 :]]
