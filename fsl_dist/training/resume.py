"""Resuming a run: which settings may change, and which would make it another run."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from fsl_dist.config import CONFIG_FILE, RunConfig
from fsl_dist.data.catalogue import is_dataset
from fsl_dist.errors import RequestError
from index.base.files import exists
from index.base.object_cache import working_folder
from index.base.settings import dump

log = logging.getLogger(__name__)

# Location, monitoring and scoring of a run: none of it makes another run.
_SURROUNDINGS = (
    "backbone.weights",  # the checkpoint's weights count
    "backbone.pretrained",
    "run.dir",
    "run.trackers",
    "workers.",
    "evaluation.",
    "index.",
    "mining.actors",
    "mining.cpus",
    "mining.gpus",
    "data.dataset",  # another path; the checkpoint's catalogue fingerprint decides whether it is the same data
    "data.features",
    "data.decoder",
    "data.threads",
    "data.prefetch",
    "data.max_read_gap_bytes",
    "data.check_reads",
    "data.max_bad_fraction",
    "training.grace_s",
    "training.keep_checkpoints",
    "training.checkpoint_steps",
    "training.compile",
    "training.log_train_knn",
)
# Further settings that may change when a run is resumed: its length and learning rate.
_WAY_ON = (
    "training.epochs",
    "training.images",
    "training.minutes",
    "training.max_bad_steps",
    "training.patience",
    "training.validate_every",
    "training.lr",  # lr, lr_milestones, lr_gamma
    "training.schedule",
    "training.warmup",
)
# Settings that determine the learning rate of the remaining steps.
_RATE = ("training.lr", "training.schedule", "training.warmup")


def check_folder(config: RunConfig, *, resumes: bool) -> Path:
    """The run's folder; RequestError if none is set, or if it contains a run that is not to be resumed."""
    if not config.run.dir:
        raise RequestError("run.dir is empty; name a folder for the run: run.dir=runs/first")
    run = working_folder(config.run.dir)
    if is_dataset(run):
        raise RequestError(f"run.dir={config.run.dir} is a data set; name another folder for the run")
    if exists(run / CONFIG_FILE) and not resumes:
        raise RequestError(
            f"run.dir={run} already contains a run (resume=True continues it, another run.dir starts a new one)"
        )
    return run


def settle(config: RunConfig, version: int) -> RunConfig:
    """Write out what depends on the number of workers, the weights and the day, so that resuming changes nothing.

    version: of the catalogue that is current.
    """
    per_step = config.episode.per_step or config.workers.num
    backbone = config.backbone
    if backbone.batch_norm == "auto" and backbone.starts_from_weights:
        # A resumed run may omit its weights, and its batch norm must not change.
        backbone = replace(backbone, batch_norm="frozen")
    return replace(
        config,
        backbone=backbone,
        episode=replace(config.episode, per_step=per_step),
        training=replace(config.training, head_lr_factor=config.head_lr_factor),
        data=replace(config.data, version=config.data.version or version),
    )


def check_resumable(config: RunConfig, stored: RunConfig, *, is_finished: bool = False) -> RunConfig:
    """Return `config`, settled, if it resumes the run that was started as `stored`.

    is_finished: the run is used as it is, so its length and learning rate must be equal too.

    Raises RequestError naming the first setting that would make it another run.
    """
    if config.episode.per_step == 0:
        config = replace(config, episode=replace(config.episode, per_step=stored.episode.per_step))
    if config.data.version == 0:
        config = replace(config, data=replace(config.data, version=stored.data.version))
    if config.training.head_lr_factor == "auto":
        factor = stored.training.head_lr_factor
        config = replace(config, training=replace(config.training, head_lr_factor=factor))
    if config.backbone.batch_norm == "auto":
        config = replace(config, backbone=replace(config.backbone, batch_norm=stored.backbone.batch_norm))
    if not stored.backbone.starts_from_weights:
        # The checkpoint has the weights, and batch_norm=auto depends on whether there were initial weights.
        config = replace(config, backbone=replace(config.backbone, weights="", pretrained=False))
    before, now = _flatten(dump(stored)), _flatten(dump(config))
    # Whether there are chunks decides backbone.batch_norm=auto; their size changes nothing.
    are_chunked = config.training.chunk_size > 0 and stored.training.chunk_size > 0
    may_change = (
        *_SURROUNDINGS,
        *(() if is_finished else _WAY_ON),
        *(("training.chunk_size",) if are_chunked else ()),
    )
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not is_finished:
            if key.startswith(_RATE):
                log.warning("%s=%s replaces the run's %s from here on", key, now.get(key), before.get(key))
            elif key in ("training.epochs", "training.images") and _follows_length(config):
                log.warning(
                    "%s=%s replaces the run's %s: the learning rate follows the run's length (training.schedule=%s, "
                    "training.warmup=%g), so it is another one from here on",
                    key, now.get(key), before.get(key), config.training.schedule, config.training.warmup,
                )  # fmt: skip
        if before.get(key) != now.get(key) and not key.startswith(may_change):
            raise RequestError(
                f"{key}={now.get(key)} differs from the run's {before.get(key)} in {stored.run.dir}; a run resumes "
                "with the settings of its start (another folder starts a new run)"
            )
    return config


def _follows_length(config: RunConfig) -> bool:
    return config.training.schedule == "cosine" or config.training.warmup > 0


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
