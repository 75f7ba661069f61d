"""Going on with a run: which settings may change on the way, and which would make it another run."""

from dataclasses import replace
from typing import Any

from fsl_dist.config import RunConfig
from fsl_dist.errors import RequestError
from index.gate import dump

# What a run may be resumed with otherwise: where it runs, how long, how it is watched and scored.
_MAY_CHANGE = (
    "run.dir",
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
    "backbone.weights",  # the checkpoint's weights count
    "backbone.pretrained",
    "training.epochs",
    "training.images",
    "training.patience",
    "training.validate_every",
    "training.checkpoint_steps",
    "training.keep_checkpoints",
    "training.compile",
    "training.lr",  # lr, lr_milestones, lr_gamma
)


def settle(config: RunConfig, version: int) -> RunConfig:
    """Write out what depends on the number of workers and on the day, so that resuming changes nothing.

    version: of the catalogue that is current.
    """
    per_step = config.episode.per_step or config.workers.num
    return replace(
        config,
        episode=replace(config.episode, per_step=per_step),
        data=replace(config.data, version=config.data.version or version),
    )


def check_resumable(config: RunConfig, stored: RunConfig) -> RunConfig:
    """`config`, settled, if it goes on with the run that was started as `stored`.

    Raises RequestError naming the first setting that would make it another run.
    """
    if config.episode.per_step == 0:
        config = replace(config, episode=replace(config.episode, per_step=stored.episode.per_step))
    if config.data.version == 0:
        config = replace(config, data=replace(config.data, version=stored.data.version))
    before, now = _flatten(dump(stored)), _flatten(dump(config))
    # Whether there are chunks settles backbone.batch_norm=auto; how large they are changes nothing.
    are_chunked = config.training.chunk_size > 0 and stored.training.chunk_size > 0
    may_change = (*_MAY_CHANGE, "training.chunk_size") if are_chunked else _MAY_CHANGE
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(may_change):
            raise RequestError(
                f"{key}={now.get(key)} differs from the run's {before.get(key)} in {stored.run.dir}; --resume goes on "
                "with a run as it was started (another run.dir starts a new one)"
            )
    return config


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
