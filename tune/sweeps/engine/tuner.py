"""`ray.tune.Tuner` over a sweep's folder."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray import tune as raytune

from fsl_dist.training.ray.stopping import passing_on
from index.base.errors import FslDistError
from index.base.scratch import scratch_folder
from tune.quiet import logging_from
from tune.sweep_file import render_sweep
from tune.sweeps.engine.driver import Driver
from tune.sweeps.engine.records import BudgetStopper, FolderRecords
from tune.sweeps.engine.schedulers import build_tune_scheduler
from tune.sweeps.engine.searcher import FolderSearch
from tune.sweeps.engine.trainable import RunTrial

_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # its tables on stdout, which is reserved for a command's result
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs write their own
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the experiment is never restored from it
    # If trials were submitted one at a time, actors would start one at a time, and HyperBand's brackets would be
    # halved early.
    "TUNE_MAX_PENDING_TRIALS_PG": "200",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the sweep reports failures in one line
    "TUNE_FORCE_TRIAL_CLEANUP_S": "120",  # a run that is left gets to its next validation
}


def fit(driver: Driver) -> raytune.ResultGrid:
    """Run the rest of a sweep; return Tune's result of the trials that ran."""
    config = driver.config
    base = config.trial_base()
    if base.uses_ray:
        # Ray Train's workers reserve the cores; a group must reserve something, and every cluster has this.
        resources = raytune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    else:
        resources = raytune.PlacementGroupFactory([{"CPU": base.num_cpus, "GPU": config.resources.gpus}])
    with (
        scratch_folder("fsl-tune-") as scratch,
        _environment(),
        logging_from("ray.tune", logging.CRITICAL),
        passing_on(driver.stop) as bell,
    ):
        trainable = raytune.with_parameters(
            RunTrial,
            text=render_sweep(config),
            folder=str(driver.owner.folder),
            owner=driver.owner.epoch,
            bell=bell,
        )
        tuner = raytune.Tuner(
            raytune.with_resources(trainable, resources),
            tune_config=raytune.TuneConfig(
                mode="max",
                metric="value",
                search_alg=FolderSearch(driver),
                scheduler=build_tune_scheduler(config, driver),
                num_samples=-1,  # the search ends it
                reuse_actors=True,
            ),
            run_config=raytune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                stop=BudgetStopper(driver),
                callbacks=[FolderRecords(driver)],
            ),
        )
        try:
            grid = tuner.fit()
        except Exception as error:
            if (own := _own_error(error)) is not None:
                raise own from error
            raise
        finally:
            driver.release()
    driver.close()
    return grid


def _own_error(error: BaseException) -> FslDistError | None:
    """The project's own error inside Tune's error; None if there is none."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, FslDistError):
        inner = inner.__cause__ or inner.__context__
    return inner


@contextmanager
def _environment() -> Iterator[None]:
    """Tune's settings that are environment variables, while it runs."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
