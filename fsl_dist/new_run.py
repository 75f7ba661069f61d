"""Training a run from Python."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl_dist.config import RunConfig, load_config, load_resumed, parse_config, render_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.progress import Progress, progress_printer
from fsl_dist.run import PathLike, Run, Settings, open_run
from index.base.settings import parse_overrides, to_overrides, to_yaml

if TYPE_CHECKING:
    from fsl_dist.training.launch import TrainingSummary

log = logging.getLogger(__name__)


def train(
    config: "RunConfig | Mapping[str, object] | PathLike | None" = None,
    *,
    data: "Catalogue | PathLike | None" = None,
    dir: PathLike | None = None,
    settings: Settings = (),
    resume: bool = False,
    from_step: int | None = None,
    progress: bool | Progress = True,
) -> "Run":
    """Train one run. Ray is joined or started if the configuration needs it.

    Args:
        config: name of a shipped configuration (`list_configs()`), path of a YAML file, nested or dotted settings, or a
            RunConfig. None: the defaults, or with `resume` the configuration that the run was started with.
        data: data set to train on, instead of `data.dataset`: opened, or its folder or address.
        dir: folder for the run, or its address at s3:// or gs://, instead of `run.dir`.
        settings: take precedence over those of `config`.
        resume: continue from the last checkpoint in `dir`.
        from_step: with `resume`, continue from the checkpoint after this many steps, and remove those after it.
        progress: show a progress line on a terminal or in a notebook, and elsewhere write a line to stderr at most
            once per minute; or a function that is called with each line.

    Returns:
        The trained run, with `summary` set. If training improved nothing, its best checkpoint is the start; then
        `summary.warning` says so, which is logged too.

    Raises:
        ConfigError: a setting is unknown or breaks a rule.
        RequestError: `dir` already contains a run (without `resume`), or the data do not suit the configuration.
        TrainingError: the run cannot continue, for example because the loss is not finite.
        Stopped: Ctrl-C or SIGTERM in the main thread: the current step was finished and a checkpoint written within
            `training.grace_s`; the text says what is kept. It is a KeyboardInterrupt.
    """
    overrides = to_overrides(settings)
    if dir is not None:
        overrides += to_overrides({"run.dir": os.fspath(dir)})
    if isinstance(data, Catalogue):
        overrides += to_overrides({"data.dataset": str(data.folder), "data.version": data.version})
    elif data is not None:
        overrides += to_overrides({"data.dataset": os.fspath(data)})
    chosen = _configure(config, overrides, resume)
    show = progress if callable(progress) else progress_printer() if progress else None
    begin = _train_on_ray if chosen.uses_ray else _train
    summary = begin(chosen, resume, from_step, show)
    run = open_run(chosen.run.dir)
    run.summary = summary
    if summary.warning and not callable(
        progress
    ):  # a caller with a progress function shows the summary itself
        log.warning("%s: %s", chosen.run.dir, summary.warning)
    return run


def _configure(config: Any, overrides: list[str], resume: bool) -> RunConfig:
    if config is None:
        return load_resumed(overrides) if resume else load_config(None, overrides)
    if isinstance(config, RunConfig):
        return parse_config(render_config(config), overrides, "the configuration")
    if isinstance(config, Mapping):
        nested = parse_overrides(to_overrides(config))
        return parse_config(to_yaml(nested), overrides, "the configuration")
    return load_config(Path(config), overrides)


def _train(
    config: RunConfig, resume: bool, from_step: int | None, show: Progress | None
) -> "TrainingSummary":
    from fsl_dist.training.launch import train_run

    return train_run(config, resume=resume, from_step=from_step, show=show)


def _train_on_ray(
    config: RunConfig, resume: bool, from_step: int | None, show: Progress | None
) -> "TrainingSummary":
    """Find all errors that can be found without torch, then import torch while Ray starts."""
    from fsl_dist.training.ray.session import ray_session
    from fsl_dist.training.resume import check_folder
    from fsl_dist.training.trackers.sending import check_trackers

    check_folder(config, resumes=resume)
    check_trackers(config)
    if config.data.dataset:
        Catalogue.open(config.data.dataset, config.data.version or None)
    with ray_session(config.num_cpus, importing="fsl_dist.training.ray.train"):
        return _train(config, resume, from_step, show)
