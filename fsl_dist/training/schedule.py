"""The learning rate of a step, as a pure function of the run's progress:
a resumed run has the same rates as an uninterrupted one."""

import math

from fsl_dist.training.checkpoint import Progress
from fsl_dist.training.config import TrainingConfig


def learning_rate(
    settings: TrainingConfig, progress: Progress, *, steps_per_epoch: int, num_images: int
) -> float:
    """The learning rate of the step after `progress`, which has `num_images` images."""
    done = share_done(
        settings,
        steps_per_epoch=steps_per_epoch,
        step=progress.global_step,
        images_seen=progress.images_seen,
        num_images=num_images,
        seconds=progress.seconds,
    )
    return settings.lr * rate_factor(settings, done=done, epoch=progress.epoch)


def is_used_up(settings: TrainingConfig, progress: Progress) -> bool:
    """Whether a run is over: by its epochs, images, minutes or patience."""
    return (
        progress.epoch >= settings.epochs
        or (settings.images > 0 and progress.images_seen >= settings.images)
        or (settings.minutes > 0 and progress.seconds >= 60 * settings.minutes)
        or (settings.patience > 0 and progress.validations_since_best >= settings.patience)
    )


def share_done(
    settings: TrainingConfig,
    *,
    steps_per_epoch: int,
    step: int,
    images_seen: int,
    num_images: int,
    seconds: float = 0.0,
) -> float:
    """The share of the whole run that is done in the middle of a step, above 0 and at most 1.

    The run ends by `epochs`, by `images` or by `minutes`, whichever comes first.

    Args:
        steps_per_epoch: optimizer steps per epoch.
        step: optimizer steps before this one, over all epochs.
        images_seen: images that were forwarded before it.
        num_images: images per step.
        seconds: training time before it.
    """
    done = (step + 0.5) / max(1, settings.epochs * steps_per_epoch)
    if settings.images > 0:
        done = max(done, (images_seen + 0.5 * num_images) / settings.images)
    if settings.minutes > 0:
        # Half a step more, as above: the duration of a step is estimated from the steps so far.
        done = max(done, seconds * (1 + 0.5 / max(step, 1)) / (60 * settings.minutes))
    return min(done, 1.0)


def rate_factor(settings: TrainingConfig, *, done: float, epoch: int) -> float:
    """The learning rate as a share of `settings.lr`, 0 … 1 (a milestone with lr_gamma above 1 raises it further).

    With w = `settings.warmup`, it is done/w before w; after it ½(1 + cos(π(done − w)/(1 − w))) (Loshchilov & Hutter
    2017, Eq. 5), or 1. `lr_gamma` counts once for each milestone up to `epoch`.

    Args:
        done: of `share_done`.
        epoch: the step's, 0 the first.
    """
    if done < settings.warmup:
        factor = done / settings.warmup
    elif settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * (done - settings.warmup) / (1 - settings.warmup)))
    else:
        factor = 1.0
    return factor * settings.lr_gamma ** sum(milestone <= epoch for milestone in settings.lr_milestones)
