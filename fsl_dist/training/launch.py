"""Start or resume a run: claim its folder, check the request, train in this process or on Ray."""

import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fsl_dist.config import CONFIG_FILE, RunConfig, encode_config, load_run, resolve_paths
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.loader import FeatureSource, describe_samples
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import TIMM
from fsl_dist.training.checkpoint import CheckpointFolder, Progress, read_progress
from fsl_dist.training.loop import Trainer, Watch
from fsl_dist.training.optimizer import group_parameters
from fsl_dist.training.resume import check_folder, check_resumable, settle
from fsl_dist.training.runlog import RunFollower, describe_progress, last_step, read_validations
from fsl_dist.training.splits import NO_VALIDATION, check_classes, check_stop, describe_gaps, split_run
from fsl_dist.training.trackers.sending import IDS_FILE, check_trackers, tracking
from fsl_dist.training.trained import resolve_weights
from index.base.files import Owner, remove_file, remove_folder, remove_unfinished, write_atomic
from index.base.object_cache import bring
from index.base.stopping import Stopped, StopRequest, answering_signals, number_of
from index.runtime import flushing_denormals
from index.versions import STAGING

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """How a training ended."""

    run: str
    epochs: int
    steps: int
    images_seen: int
    loss: float | None
    """of the last step"""
    stop_metric: str
    best_value: float | None
    """best validation, the start's included; None when the run did not validate"""
    start_value: float | None
    """validation before the first step; None when the run did not validate then"""
    is_better_than_start: bool | None
    """whether a validation of training was better than the start's; None when none was compared with it"""
    checkpoint: str
    """folder of the best checkpoint, of the last one if the run did not validate"""
    warning: str
    """a problem of the result with a remedy; empty if there is none"""
    seconds: float

    def facts(self) -> dict[str, bool | int | float | str]:
        """The values that trackers get at the run's end; unknown values and an empty warning are left out."""
        facts = dataclasses.asdict(self)
        return {name: value for name, value in facts.items() if value is not None and value != ""}


@flushing_denormals(torch.set_flush_denormal)
def train_run(
    config: RunConfig,
    *,
    resume: bool = False,
    from_step: int | None = None,
    show: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    sweep: Path | None = None,
    stop: StopRequest | None = None,
) -> TrainingSummary:
    """Train `config`, from the last checkpoint with `resume`, and return the summary.

    If `workers` need Ray, the cluster to which this process is connected is used, otherwise that of RAY_ADDRESS;
    otherwise one is started. Earlier processes of this run can no longer write once this call has begun.

    Args:
        from_step: the checkpoint to resume from, instead of the last; later ones are removed.
        show: prints a progress line.
        watch: may end the run after a validation.
        sweep: folder of the sweep that the run is a trial of; `run.trackers` group its trials.
        stop: requests a stop, in addition to Ctrl-C and SIGTERM, which only the main thread receives.

    Raises:
        RequestError: the folder contains a run (without `resume`), or the data are not suitable.
        Stopped: the run was asked to stop; the text names the checkpoint that is kept.
    """
    if from_step is not None and not resume:
        raise RequestError(
            f"from_step={from_step} selects the checkpoint to resume from; it needs resume=True"
        )
    run = check_folder(config, resumes=resume)
    checkpoints = CheckpointFolder(run, keep=config.training.keep_checkpoints, owner=None)
    check_trackers(config)
    config = resolve_weights(config)
    num_steps = check_run(config, warn=log.warning, tell=log.info)
    config = resolve_paths(config)
    is_known = resume and (run / CONFIG_FILE).is_file()
    if is_known:
        config = check_resumable(config, load_run(run))
    else:
        config = settle(config, Catalogue.open(config.data.dataset).version)
    started = time.perf_counter()
    owner = Owner.claim(run)
    # At an object store, only published objects count, not local files that a killed process did not upload.
    bring(run, wanted=lambda name: not name.startswith(("owner/", "ray/", "index/")), removes_others=True)
    sweep_litter(run)
    if from_step is not None:
        checkpoints.refresh()
        checkpoints.go_back(from_step)
    write_atomic(run / CONFIG_FILE, encode_config(config))
    try:
        with tracking(config, sweep) as facts:
            with _progress_lines(config, num_steps, show):
                _train(config, owner, watch, stop)
            summary = _summarise(config, checkpoints, time.perf_counter() - started)
            facts.update(summary.facts())
    except RequestError:
        if not is_known and checkpoints.latest() in (None, checkpoints.start()):
            # Nothing was trained: the folder is free for the corrected request.
            remove_file(run / CONFIG_FILE)
            remove_file(run / IDS_FILE)
            remove_folder(checkpoints.folder)
        raise
    return summary


def _train(config: RunConfig, owner: Owner, watch: Watch | None, stop: StopRequest | None) -> None:
    """Train to the end; raises Stopped, which says what is kept, on a stop request before that."""
    with ExitStack() as stack:
        if config.uses_ray:
            from fsl_dist.training.ray.session import ray_session

            stack.enter_context(ray_session(config.num_cpus))
        if stop is None:
            stop = stack.enter_context(
                answering_signals(
                    config.training.grace_s,
                    "this step and a checkpoint",
                    describe=lambda: describe_stopped(config),
                )
            )
        try:
            if _train_until(config, owner, watch, stop):
                raise Stopped(number=stop.number)
        except KeyboardInterrupt as error:
            raise Stopped(describe_stopped(config), number_of(error)) from None


def _train_until(config: RunConfig, owner: Owner, watch: Watch | None, stop: StopRequest) -> bool:
    """Train to the end, or until a stop request; return whether there was one."""
    if config.uses_ray:
        from fsl_dist.training.ray.train import train_on_ray

        return train_on_ray(config, owner, watch, stop)
    has_gpu = torch.cuda.is_available() and config.workers.gpu == "auto"
    device = torch.device("cuda:0" if has_gpu else "cpu")
    trainer = Trainer(config, group=WorkerGroup(), device=device, owner=owner, watch=watch, stop=stop)
    trainer.train()
    return trainer.has_stopped


def describe_stopped(config: RunConfig) -> str:
    """What is kept of a stopped run, and how to continue it: one line."""
    run = Path(config.run.dir)
    checkpoints = CheckpointFolder(run, keep=1, owner=None)
    latest = checkpoints.latest()
    if latest is None:
        return f"stopped: {run} has no checkpoint yet (training it with resume=True and run.dir={run} begins again)"
    progress, line = read_progress(latest), last_step(run)
    lost = max(0, line["step"] - progress.global_step) if line else 0
    late = f"; {lost} steps after it are repeated" if lost else ""
    return (
        f"stopped: {latest} is kept, after step {progress.global_step}{late} "
        f"(training with resume=True and run.dir={run} continues)"
    )


def sweep_litter(run: Path) -> None:
    """Remove what killed processes left half written in a run's folder. Call it as its owner:
    those before are fenced off."""
    CheckpointFolder(run, keep=1, owner=None).sweep()
    remove_unfinished(run)
    for staging in run.glob(f"index/*/{STAGING}"):
        shutil.rmtree(staging, ignore_errors=True)


def check_run(
    config: RunConfig,
    *,
    warn: Callable[[str], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> int:
    """Check before the start that the method can use the data, and the network the data.

    warn: called with each sentence about weaknesses of the data (`describe_gaps`). tell: called with a description of
    how the tensors of `backbone.weights` were found in their file.
    Returns the optimizer steps per epoch. Raises RequestError or ConfigError.
    """
    cpu = torch.device("cpu")
    catalogue, sample_shape = describe_samples(config.data)
    if config.data.features:
        FeatureSource(catalogue, config.data.features).check()
    splits = split_run(catalogue, config)
    check_classes(splits, config, catalogue.class_names)
    check_stop(splits, config)
    method = config.build_method(catalogue, splits.train, cpu)
    network = build_network(
        dataclasses.replace(config.backbone, pretrained=False),
        sample_shape=sample_shape,
        num_classes=method.num_outputs,
        normalise=method.normalise,
        outputs_embeddings=method.outputs_embeddings,
    )
    method.check_embeddings(network.embedding_dim, config.index)
    if tell is not None and network.weights_note:
        tell(network.weights_note)
    group_parameters(
        network,
        lr_factor=config.backbone.lr_factor,
        linear_lr_factor=config.backbone.linear_lr_factor,
        layer_decay=config.backbone.layer_decay,
    )
    if warn is not None:
        for sentence in (
            *describe_gaps(splits, config, catalogue.class_names),
            *_describe_other_pixels(config),
        ):
            warn(sentence)
    return method.num_steps()


def _describe_other_pixels(config: RunConfig) -> Iterator[str]:
    """Sentences about images that are normalised otherwise than those that the weights of timm's network were trained
    on."""
    if not config.backbone.name.startswith(TIMM) or not config.backbone.starts_from_weights:
        return
    from fsl_dist.models.timm_backbone import input_settings

    own = input_settings(config.backbone.name, {})
    for key in ("mean", "std"):
        given = list(getattr(config.data, key))[: config.data.channels]
        wanted = own[key][: config.data.channels]
        if given != wanted:
            yield f"data.{key}={given} differs from the {wanted} of the weights of backbone.name={config.backbone.name}"


def _summarise(config: RunConfig, checkpoints: CheckpointFolder, seconds: float) -> TrainingSummary:
    latest = checkpoints.latest()
    assert latest is not None
    progress = read_progress(latest)
    line = last_step(checkpoints.run)
    return TrainingSummary(
        run=str(checkpoints.run),
        epochs=progress.epoch,
        steps=progress.global_step,
        images_seen=progress.images_seen,
        loss=line["train/loss"] if line else None,
        stop_metric=config.stop_metric,
        best_value=progress.best_value if progress.best_step >= 0 else None,
        start_value=progress.start_value,
        is_better_than_start=_is_better_than_start(progress),
        checkpoint=str(checkpoints.best() or latest),
        warning=_warning(config, checkpoints.run, progress),
        seconds=round(seconds, 1),
    )


def _is_better_than_start(progress: Progress) -> bool | None:
    if progress.start_value is None or progress.global_step == 0:
        return None
    return progress.best_step > 0


def _warning(config: RunConfig, run: Path, progress: Progress) -> str:
    """A warning if the best checkpoint is the start, or if there is no best one."""
    if progress.global_step > 0 and progress.best_step < 0 and config.training.patience > 0:
        return NO_VALIDATION
    if _is_better_than_start(progress) is not False:
        return ""
    trained = [value for step, value in read_validations(run, config.stop_metric) if step > 0]
    can_freeze = config.backbone.starts_from_weights and config.backbone.batch_norm != "frozen"
    frozen = " backbone.batch_norm=frozen," if can_freeze else ""
    return (
        f"validation {config.stop_metric} never rose above the start's {progress.start_value:.4f}"
        + (f" (best of training {max(trained):.4f})" if trained else "")
        + f": the start is kept. Usual remedies: training.lr below {config.training.lr:g},{frozen} more training.epochs"
    )


@contextmanager
def _progress_lines(config: RunConfig, num_steps: int, show: Callable[[str], None] | None) -> Iterator[None]:
    """Follow a run's metrics file and `show` its progress, for any location of its workers; an empty line ends it."""
    if show is None:
        yield
        return
    done = threading.Event()

    def follow() -> None:
        metrics = RunFollower(Path(config.run.dir), config.stop_metric)
        first, first_time = None, 0.0
        is_over = False
        while not is_over:
            is_over = done.wait(0.5)  # the last steps are shown too
            if not metrics.read() or metrics.step is None:
                continue
            step = metrics.step["step"]
            if first is None or step < first:
                first, first_time = step, time.perf_counter()
                continue
            show(
                describe_progress(
                    metrics.step,
                    num_epochs=config.training.epochs,
                    num_steps=num_steps,
                    num_images=config.training.images,
                    seconds=60 * config.training.minutes,
                    elapsed_s=time.perf_counter() - first_time,
                    done_steps=step - first,
                    validation=metrics.describe_validation(),
                )
            )

    follower = threading.Thread(target=follow, name="progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        show("")
