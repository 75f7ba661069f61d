"""Fitting a folder of images from Python: `fsl_dist.fit`."""

import logging
import os
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fsl_dist.notebook import html_table
from fsl_dist.progress import Progress, progress_printer
from fsl_dist.run import PathLike, Run, Settings, open_run
from index.base.errors import RequestError
from index.base.files import Owner, exists, remove_folder
from index.base.object_cache import on_disk
from index.base.stopping import Stopped, number_of
from tune.fit.config import FIT_FILE, check_same, read_request, read_stored, write_request
from tune.fit.records import RECORD_FILE, CandidateRecord, FitRecord
from tune.fit.table import HEAD, table_rows

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

REPORT = "report.html"


def fit(
    folder: PathLike,
    *,
    dir: PathLike | None = None,
    minutes: float = 10.0,
    settings: Settings = (),
    final: bool | str = "auto",
    seed: int = 0,
    resume: bool = False,
    progress: bool | Progress = True,
) -> "Fit":
    """Train the best model for a folder of images within a number of minutes, chosen on validation images.

    The images are packed if necessary, embedded by a frozen network, and used to train a few recipes, each scored by
    every head that applies. The best recipe is trained once more for most of the time. Test images are scored once,
    at the end.

    Args:
        folder: one folder of images per class, optionally with a table labels.csv; or a packed data set.
        dir: folder for all results; by default `folder`'s name with "-fit" in the working folder.
        minutes: from the call to the end.
        settings: keys of a run that apply to all candidates, such as {"backbone.weights": FILE}; `metric` (balanced,
            acc, mcr), by which candidates are compared; `holdout`; and `pack.…`, arguments of `pack`.
        final: "auto": train the chosen recipe once more, including the validation images that were held out of train.
            True: including a val split of the data set too. False: use the best run of the last round.
        seed: of the split, of the held-out images, and of all training.
        resume: continue the fit in `dir` if there is one.
        progress: show lines on a terminal or in a notebook, and elsewhere write them to stderr; or a function that is
            called with each line.

    Returns:
        The fit, with the chosen run.

    Raises:
        ConfigError: a setting is unknown or breaks a rule.
        RequestError: the data are not suitable, `minutes` do not suffice to embed the images, weights are not
            available, or `dir` already contains a fit (without `resume`).
    """
    return run_fit(
        folder,
        started=time.monotonic(),
        dir=dir,
        minutes=minutes,
        settings=settings,
        final=final,
        seed=seed,
        resume=resume,
        progress=progress,
    )


def run_fit(
    folder: PathLike,
    *,
    started: float,
    dir: PathLike | None,
    minutes: float,
    settings: Settings,
    final: bool | str,
    seed: int,
    resume: bool,
    progress: bool | Progress,
) -> "Fit":
    """`fit` whose minutes count from `started`, seconds of `time.monotonic()`."""
    config = read_request(folder, minutes=minutes, settings=settings, final=final, seed=seed)  # type: ignore[arg-type]
    out = Path(f"{Path(config.folder).name}-fit" if dir is None else os.fspath(dir))
    on_disk(str(out), "a fit")
    out = out.expanduser().resolve()
    if exists(out / FIT_FILE):
        if not resume:
            raise RequestError(
                f"dir={out} already contains a fit (resume=True continues it; another dir starts a new one)"
            )
        check_same(config, read_stored(out), out)
        if exists(out / RECORD_FILE):
            return Fit(out)
    elif out.exists() and any(out.iterdir()):
        raise RequestError(f"dir={out} is not empty and contains no fit (another dir starts a new one)")
    show = progress if callable(progress) else progress_printer() if progress else None

    from tune.fit.budget.clock import Clock
    from tune.fit.budget.plan import PLAN_FILE
    from tune.fit.flow import run_flow

    is_new = not exists(out / FIT_FILE)
    if is_new:
        write_request(out, config)
    owner = Owner.claim(out)
    clock = Clock(out, config.budget_s, started)

    def say(text: str) -> None:
        if callable(progress):
            progress(text)
        elif progress:
            log.info("%5.0f s  %s", clock.used_s, text)

    try:
        with clock.running():
            run_flow(config, out, owner, clock, say, show or False)
    except KeyboardInterrupt as error:
        raise Stopped(
            f"stopped: finished parts are kept in {out} (resume=True continues the fit)", number_of(error)
        ) from error
    except RequestError:
        if is_new and not exists(
            out / PLAN_FILE
        ):  # nothing was decided: the folder is free for the corrected request
            remove_folder(out)
        raise
    if show is not None:
        show("")
    return Fit(out)


class Fit:
    """An opened finished fit.

    Args:
        dir: its folder.

    Raises:
        ConfigError: `dir` contains no finished fit.
    """

    def __init__(self, dir: PathLike) -> None:
        self.dir = Path(dir)
        """its folder"""
        self.record = FitRecord.read(self.dir)
        """the candidates, their scores and the choice"""

    @cached_property
    def run(self) -> Run:
        """The chosen run, with its head."""
        return open_run(self.dir / self.record.final_run)

    @property
    def chosen(self) -> CandidateRecord:
        """The chosen candidate."""
        return self.record.final

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.dir / REPORT

    def table(self) -> list[list[str]]:
        """The candidates as rows of text, the head first."""
        return table_rows(self.record)

    def dataframe(self) -> "pd.DataFrame":
        """The candidates as a table.

        Returns:
            One row for each candidate: `round`, `validation_acc`, `validation_mcr`, `test_acc`, `test_mcr` with the
            ends of their 95 % intervals, `images_seen`, `seconds`, `is_chosen`; index: the name.
        """
        import pandas as pd

        from tune.fit.table import as_values

        return pd.DataFrame(as_values(self.record)).set_index("candidate")

    def __repr__(self) -> str:
        chosen = self.chosen
        score = chosen.test or chosen.validation
        where = "test" if chosen.test else "validation"
        scores = f", {where} acc {100 * score.acc:.1f} mcr {100 * score.mcr:.1f}" if score else ""
        return f"Fit({str(self.dir)!r}, {chosen.name}{scores})"

    def _repr_html_(self) -> str:
        return html_table(HEAD, self.table()[1:], caption=repr(self))
