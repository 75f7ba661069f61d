"""Running a sweep from Python."""

import contextlib
import os
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl_dist.progress import Progress, progress_printer
from fsl_dist.run import PathLike, Run, Settings, open_run
from index.base.errors import ConfigError, RequestError
from index.base.settings import parse_overrides, to_overrides
from tune.plan import best_of
from tune.records import SweepFolder
from tune.space import show_point
from tune.sweep_file import find_stored, load_stored, load_sweep, read_sweep
from tune.sweeps.config import SweepConfig
from tune.sweeps.progress import Standing

if TYPE_CHECKING:
    import pandas as pd
    from ray.tune import ResultGrid

    from tune.sweeps.report import WrittenReport
    from tune.sweeps.sweep import SweepSummary


def sweep(
    config: "Mapping[str, object] | PathLike | None" = None,
    *,
    dir: PathLike | None = None,
    settings: Settings = (),
    resume: bool = False,
    retry_failed: bool = False,
    progress: bool | Progress = True,
) -> "Sweep":
    """Run many training runs over a space of settings, with Ray Tune on a Ray cluster that is joined or started here.

    Args:
        config: name of a shipped sweep, path of a SWEEP.yaml, or its mapping. None: with `resume`, the sweep in `dir`.
        dir: folder for the sweep, instead of `dir` of `config`.
        settings: take precedence over those of `config`: keys of a sweep, or of the run that it varies.
        resume: continue the sweep in `dir` if there is one: finished trials are kept, others continue from their
            checkpoints.
        retry_failed: with `resume`, run failed trials again, from their last checkpoints.
        progress: show a line on a terminal or in a notebook, and elsewhere write a line to stderr at most once per
            minute; or a function that is called with each line.

    Returns:
        The sweep, with `summary` and `grid` set.

    Raises:
        ConfigError: a setting is unknown or breaks a rule, or `config` is a sweep of indexes.
        RequestError: `dir` already contains a sweep (without `resume`), or the data are not suitable.
        FslDistError: more trials failed than `max_failures`.
    """
    started = time.monotonic()
    # All errors that can be found early are found before Ray is imported, which settles its authentication.
    from tune.sweeps.sweep import check_resumable, num_cpus, prepare_sweep

    overrides = to_overrides(settings) + ([] if dir is None else to_overrides({"dir": os.fspath(dir)}))
    chosen = _configure(config, overrides, resume, dir)
    before = find_stored(chosen) if resume else None
    if isinstance(before, SweepConfig):
        check_resumable(before, retry_failed=retry_failed)
        chosen = before
    else:
        chosen = prepare_sweep(chosen)
    show = progress if callable(progress) else progress_printer() if progress else None

    from fsl_dist.training.ray.session import ray_session

    with ray_session(num_cpus(chosen), importing="torch"):
        from tune.sweeps.sweep import run_tuner

        summary, grid = run_tuner(chosen, show=_lines(show), retry_failed=retry_failed, started=started)
    if show is not None:
        show("")
    found = Sweep(chosen.dir)
    found.summary, found.grid = summary, grid
    return found


class Sweep:
    """An opened sweep of runs; a running one shows its finished trials.

    Args:
        dir: the sweep's folder.

    Raises:
        ConfigError: `dir` is not a folder of a sweep of runs.
    """

    def __init__(self, dir: PathLike) -> None:
        self.dir = Path(dir)
        """the sweep's folder"""
        self.config: SweepConfig = _of_runs(load_stored(self.dir))
        """the sweep as it was started"""
        self.summary: SweepSummary | None = None
        """how `sweep` ended; None where the sweep was only opened"""
        self.grid: ResultGrid | None = None
        """Ray Tune's own result of the trials that `sweep` ran:
        `grid[i].metrics`, `.config`, `.error`; None otherwise"""

    @cached_property
    def best(self) -> Run:
        """The run of the best validation.

        Raises:
            RequestError: no trial has a value yet.
        """
        trial = best_of(SweepFolder(self.dir).trials(), self.config.mode)
        if trial is None:
            raise RequestError(
                f"no trial of {self.dir} has a value yet; sweep.dataframe() shows how each ended"
            )
        return open_run(trial.folder)

    def dataframe(self) -> "pd.DataFrame":
        """The trials as a table.

        Returns:
            One row per trial. Columns: `state` (`running` if it has not ended), the metric's value by its name,
            `epochs`, `train_s`, `evaluate_s`, `error`, and each key in which trials differ. NaN means a
            value of the base.
        """
        import pandas as pd

        rows = {}
        for trial in SweepFolder(self.dir).trials():
            result = trial.result
            facts: dict[str, Any] = {
                "state": result.state if result else "running",
                self.config.value_name: result.value if result else None,
                "epochs": result.epochs if result else 0,
                "train_s": result.train_s if result else 0.0,
                "evaluate_s": result.evaluate_s if result else 0.0,
                "error": result.error if result else "",
            }
            rows[trial.number] = facts | {key: trial.point.get(key) for key in self.config.keys}
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.rename_axis("trial")

    def report(self) -> "WrittenReport":
        """Write report.md, report.html, trials.csv, evaluation.csv and best.yaml into the sweep's folder.

        Returns:
            The files, the best trial and value, and the share of each knob in the variation of the metric.
        """
        from tune.sweeps.report import write_report

        return write_report(self.dir)

    def __repr__(self) -> str:
        trials = SweepFolder(self.dir).trials()
        best = best_of(trials, self.config.mode)
        found = f", best {best.result.value:.4f} at {show_point(best.point)}" if best and best.result else ""
        return f"Sweep({str(self.dir)!r}, {len(trials)} trials, {self.config.value_name}{found})"


def _configure(config: Any, overrides: list[str], resume: bool, dir: PathLike | None) -> SweepConfig:
    if config is None:
        if not (resume and dir is not None):
            raise ConfigError(
                "config is missing: give a sweep, its YAML file or its settings; resume=True with dir continues "
                "an existing one"
            )
        if len(overrides) > 1:
            raise ConfigError("settings need a config: a sweep resumes with the settings of its start")
        return _of_runs(load_stored(Path(dir)))
    if isinstance(config, Mapping):
        raw = parse_overrides(to_overrides(config))
        return _of_runs(read_sweep(raw, overrides, "the sweep's settings"))
    return _of_runs(load_sweep(Path(config), overrides))


def _of_runs(config: Any) -> SweepConfig:
    if not isinstance(config, SweepConfig):
        raise ConfigError(
            f"dir={config.dir} is a sweep of indexes, which has no runs to open (base instead of index makes it a "
            "sweep of runs)"
        )
    return config


def _lines(show: Progress | None) -> Any:
    """Progress lines of a sweep."""

    def line(standing: Standing) -> None:
        if show is None:
            return
        best = ""
        with contextlib.suppress(IndexError):
            best = f", best {standing.metric} {standing.best[0].value:.4f} of trial {standing.best[0].trial.number:04d}"
        show(f"{standing.num_done} of {standing.num_wanted} trials, {len(standing.running)} running{best}")

    return line
