"""The training loop: plain PyTorch, the same code for one process and for every worker of a Ray run.

It starts from the last checkpoint in the run's folder, so starting and resuming are the same operation.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fsl_dist.config import RunConfig
from fsl_dist.data.loader import Loader, Source, open_source
from fsl_dist.distributed import WorkerGroup
from fsl_dist.embedder import Embedder, EmbeddingStopped, SelectionIndex, TableMiners
from fsl_dist.methods.method import Method
from fsl_dist.methods.mining.neighbour_table import NeighbourTable
from fsl_dist.training.checkpoint import (
    CheckpointFolder,
    Progress,
    check_weights,
    load_weights,
    read_checkpoint,
    step_name,
    tables_in,
    tables_of,
)
from fsl_dist.training.divergence import BadSteps, DivergedError, check_gradient, check_trained
from fsl_dist.training.network import RunningStatistics, build_trained, check_compiler, seed_dropout
from fsl_dist.training.optimizer import build_optimizer, clip_gradient, restore_optimizer, set_learning_rate
from fsl_dist.training.runlog import RunLog
from fsl_dist.training.schedule import is_used_up, learning_rate
from fsl_dist.training.splits import RunSplits, decides, split_run
from fsl_dist.training.step import PlannedStep, planned_steps, run_step, step_requests
from fsl_dist.training.validation import Validation
from fsl_dist.training.weight_average import WeightAverage
from index.base.files import Owner
from index.base.stopping import StopRequest

log = logging.getLogger(__name__)

SAY_EVERY_S = 5.0
"""seconds between two log lines of validations: epochs may be shorter"""

Watch = Callable[[int, float], bool]
"""Called after each validation with (epochs done, value of the stop metric), on the first worker; True ends the run."""


class Trainer:
    """One run on this worker: network, method, data, and progress."""

    def __init__(
        self,
        config: RunConfig,
        *,
        group: WorkerGroup,
        device: torch.device,
        owner: Owner | None,
        miners: TableMiners | None = None,
        splits: RunSplits | None = None,
        watch: Watch | None = None,
        start_competes: bool = True,
        stop: StopRequest | None = None,
    ) -> None:
        """`splits`: used instead of the data set's own, to train on a custom selection. `watch`: may end the run.

        `start_competes`: the network is also validated before its first step, and stays the best if nothing is
        better. `stop`: requests this worker, and thereby all workers, to stop with a checkpoint between two steps.
        """
        if config.training.compile:
            check_compiler()
        self.config = config
        self.group = group
        self.device = device
        self.watch = watch
        self.start_competes = start_competes and config.training.validate_start
        self.is_ended = False
        self.stop = stop or StopRequest()
        self.has_stopped = False
        """whether the run has stopped on request, on all workers"""
        self.run = Path(config.run.dir)
        self.use_bf16 = config.training.uses_bf16(device.type)
        self.source: Source = open_source(
            config.data, config.run.seed, str(device), max_batch=max(config.evaluation.batch_size, 256)
        )
        self.catalogue = self.source.catalogue
        self.splits: RunSplits = splits or split_run(self.catalogue, config)
        self.decides = decides(self.splits, config)
        self.method: Method = config.build_method(self.catalogue, self.splits.train, device)
        network, self.is_ghost = build_trained(config, self.source, self.method, group)
        self.network = network.to(device)
        self.optimizer = build_optimizer(
            self.network,
            config.training,
            lr_factor=config.backbone.lr_factor,
            linear_lr_factor=config.backbone.linear_lr_factor,
            head_lr_factor=config.head_lr_factor,
            layer_decay=config.backbone.layer_decay,
        )
        self.average = WeightAverage(config.training.ema)
        self.statistics = RunningStatistics(self.network, self.average, group)
        self.progress = Progress()
        self._saved: Progress | None = None
        self._said_s = float("-inf")
        self.checkpoints = CheckpointFolder(self.run, keep=config.training.keep_checkpoints, owner=owner)
        self.checkpoints.refresh()
        self._restore()
        self.bad_steps = BadSteps(config, self.catalogue, self.network, self.checkpoints, group)
        self.forward: torch.nn.Module = self._wrap()
        self.embedder = Embedder(
            self.network,
            self.source,
            device=device,
            batch_size=config.evaluation.batch_size,
            prefetch=config.data.prefetch,
            use_bf16=self.use_bf16,
        )
        self.train_index = SelectionIndex(
            self.embedder,
            self.catalogue,
            self.splits.train,
            self.run / "index" / "train",
            group=group,
            config=config.index,
            owner=owner,
            miners=miners,
        )
        self.validation = Validation(
            config, self.catalogue, self.splits, self.method, self.embedder, self.train_index, owner
        )

    def _wrap(self) -> torch.nn.Module:
        forward: torch.nn.Module = self.network
        if self.group.world_size > 1:
            # Buffers are batch norm's statistics: averaged by `statistics`, never overwritten by rank 0's.
            forward = DistributedDataParallel(
                self.network, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        if self.config.training.compile:
            self.network.compile()
        return forward

    def _restore(self) -> None:
        folder = self.checkpoints.latest()
        if folder is None:
            return
        checkpoint = read_checkpoint(folder, self.device)
        checkpoint.check_catalogue(self.catalogue.fingerprint, self.config.data.dataset)
        load_weights(self.network, checkpoint.network, folder)
        check_weights(self.network, folder)
        restore_optimizer(self.optimizer, checkpoint.optimizer, folder)
        self.average.state = checkpoint.average
        self.statistics.restore(checkpoint.statistics)
        self.method.load_state(checkpoint.method)
        self.progress = self._saved = checkpoint.progress
        if self.group.is_first:
            log.info("resuming %s from step %d", self.run, self.progress.global_step)

    def train(self) -> Progress:
        """Train until the epochs, the images or the patience are used up, or a stop; returns where the run ended."""
        with ExitStack() as stack:
            runlog = None
            if self.group.is_first:
                # Without a checkpoint, the validation of the start is repeated: lines of the earlier attempt are
                # dropped.
                from_step = self.progress.global_step if self._saved else -1
                runlog = RunLog(self.config, from_step=from_step, owner=self.checkpoints.owner)
                stack.enter_context(runlog)
            is_unscored = self.progress.global_step == 0 and self.progress.start_value is None
            if self.decides and self.start_competes and is_unscored:
                with self._stopping_embeddings():
                    self._validate_start(runlog)
            self._started_s = time.monotonic() - self.progress.seconds
            while not self.has_stopped and (not self._is_over() or self.progress.owes_validation):
                self._train_epoch(runlog)
            if self.progress != self._saved and (self.progress.global_step or not self.has_stopped):
                self._write_checkpoint(is_stop=self.has_stopped)
        self.source.close()
        return self.progress

    def _is_over(self) -> bool:
        return self.is_ended or is_used_up(self.config.training, self.progress)

    def _train_epoch(self, runlog: RunLog | None) -> None:
        epoch, num_steps = self.progress.epoch, self.method.num_steps()
        step = self.progress.step
        self.has_stopped = self.group.any(self.stop.is_set, self.device)
        if self.has_stopped:
            return
        while step < num_steps and not self._is_over() and not self.has_stopped:
            extra: dict[str, float] = {}
            if self.method.prepares_at(epoch, step):
                extra = self._prepare(epoch)
            until = next(
                (s for s in range(step + 1, num_steps) if self.method.prepares_at(epoch, s)), num_steps
            )
            self._train_steps(epoch, range(step, until), runlog, extra)
            step = until
        if self.has_stopped and self.progress.step < num_steps and not self._is_over():
            return
        before = dataclasses.replace(self.progress, owes_validation=True)
        self.progress = dataclasses.replace(self.progress, owes_validation=False)
        if self.progress.step >= num_steps:
            self.progress = dataclasses.replace(self.progress, epoch=epoch + 1, step=0)
        with self._stopping_embeddings():
            is_better = not self.has_stopped and self._validate(epoch, runlog)
        if self.has_stopped:  # resumed, it begins with this validation
            self.progress = before
            return
        if is_better or self.config.training.checkpoint_steps == 0 or self._is_checkpoint_due():
            self._write_checkpoint()

    def _prepare(self, epoch: int) -> dict[str, float]:
        started = time.perf_counter()
        self.statistics.average()
        self.train_index.move_to(step_name(self.progress.global_step))
        metrics = self.method.prepare(epoch, self.progress.global_step, self.train_index, self.group)
        return {**metrics, "time/prepare_s": time.perf_counter() - started}

    def _train_steps(self, epoch: int, steps: range, runlog: RunLog | None, extra: dict[str, float]) -> None:
        requests = step_requests(
            self.method,
            epoch,
            steps,
            group=self.group,
            is_ghost=self.is_ghost,
            ghost_group=self.config.backbone.batch_norm_group,
            chunk_size=self.config.training.chunk_size,
        )
        self.network.train()
        with Loader(self.source, requests, self.config.data.prefetch) as loader:
            waited_s, started = 0.0, time.perf_counter()
            for planned, images in planned_steps(loader):
                found = self._take_or_skip(planned, images)
                num_images = planned.num_images
                self._advance(planned.step, num_images)
                step_s = time.perf_counter() - started
                metrics = {
                    **found,
                    **extra,
                    "train/images_seen": float(self.progress.images_seen),
                    "time/step_s": step_s,
                    "time/data_wait_s": loader.wait_s - waited_s,
                    "time/images_per_s": num_images / step_s,
                }
                extra, waited_s, started = {}, loader.wait_s, time.perf_counter()
                if runlog is not None:
                    runlog.write(self.progress.global_step, epoch, metrics)
                # At the end of an epoch the decision follows its validation.
                if planned.step + 1 < self.method.num_steps() and self._is_checkpoint_due():
                    self._write_checkpoint()
                if self._is_over() or self.has_stopped:
                    break

    def _take_or_skip(self, planned: PlannedStep, images: Iterator[Tensor]) -> dict[str, float]:
        """The metrics of a step; for a non-finite step only the number of skipped steps."""
        kept = self.statistics.copy()
        try:
            found = self.take_step(planned, images)
            self.progress = dataclasses.replace(self.progress, bad_in_a_row=0)
        except DivergedError as error:
            self.statistics.put_back(kept)
            self.has_stopped = error.is_asked_to_stop
            self.progress = self.bad_steps.skip(error, self.progress)
            found = {}
        if self.progress.skipped_steps:
            found["train/skipped_steps"] = float(self.progress.skipped_steps)
        return found

    def take_step(self, planned: PlannedStep, images: Iterator[Tensor]) -> dict[str, float]:
        """One optimizer step on a planned step's images (see `run_step`): its metrics, reduced. Collective.

        Raises DivergedError, the same on every worker, before anything but batch norm's statistics has changed.
        """
        seed_dropout(self.config.run.seed, self.progress.global_step, self.group.rank, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        result = run_step(
            self.forward,
            self.method,
            planned,
            images,
            group=self.group,
            device=self.device,
            use_bf16=self.use_bf16,
            is_asked_to_stop=self.stop.is_set,
        )
        norm = clip_gradient(self.network, self.config.training.clip_norm)
        grad_norm = check_gradient(norm, planned, result.is_asked_to_stop)
        lr = learning_rate(
            self.config.training,
            self.progress,
            steps_per_epoch=self.method.num_steps(),
            num_images=planned.num_images,
        )
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self.average.update(self.network, self.progress.global_step)
        merged = self.method.finish_step(
            self.progress.global_step, planned.batches, result.updates, self.group
        )
        self.has_stopped = result.is_asked_to_stop
        return {**result.metrics, **merged, "train/lr": lr, "train/grad_norm": grad_norm}

    @contextmanager
    def _stopping_embeddings(self) -> Iterator[None]:
        """Leave the block between two embedding batches, on all workers, if one has a stop request."""
        self.embedder.stop = self.stop
        try:
            yield
        except EmbeddingStopped:
            self.has_stopped = True
        finally:
            self.embedder.stop = None

    def _advance(self, step: int, num_images: int) -> None:
        self.progress = dataclasses.replace(
            self.progress,
            step=step + 1,
            global_step=self.progress.global_step + 1,
            images_seen=self.progress.images_seen + num_images,
        )
        if self.config.training.minutes > 0:  # the first worker's clock is that of all
            seconds = float(self.group.share_text(repr(time.monotonic() - self._started_s)))
            self.progress = dataclasses.replace(self.progress, seconds=seconds)

    def _is_checkpoint_due(self) -> bool:
        every = self.config.training.checkpoint_steps
        return every > 0 and self.progress.global_step % every == 0

    def _validate_start(self, runlog: RunLog | None) -> None:
        """Score the network before its first step, as the first candidate for the best, and store it."""
        self.train_index.move_to(step_name(0))
        metrics = self.validation.measure()
        value = metrics[self.config.stop_metric]
        self.progress = dataclasses.replace(self.progress.validated(value), start_value=value)
        if runlog is not None:
            log.info("start: validation %s %.4f", self.config.stop_metric, value)
            runlog.write(0, 0, {f"eval/{key}": v for key, v in metrics.items()})
        self._write_checkpoint()

    def _validate(self, epoch: int, runlog: RunLog | None) -> bool:
        """Score the epoch if that is due; return whether it is the best so far.

        If validations select the best epoch, one is due at the end of the run too: its last epochs compete with the
        start.
        """
        settings = self.config.training
        is_due = (epoch + 1) % settings.validate_every == 0 or (self.decides and self._is_over())
        if not is_due or not (self.decides or settings.log_train_knn):
            return False
        self.statistics.average()
        with self.average.in_place_of(self.network):
            weights = "average" if self.average.state else "step"
            self.train_index.move_to(f"{weights}-{self.progress.global_step:08d}")
            metrics = self.validation.measure() if self.decides else {}
            if settings.log_train_knn:
                metrics |= self.validation.measure_train()
        is_better = self.decides and self._keep_best(metrics[self.config.stop_metric], epoch, runlog)
        if self.decides and self.watch is not None:
            ends = self.group.is_first and self.watch(epoch + 1, metrics[self.config.stop_metric])
            self.is_ended = self.group.share_text("ends" if ends else "") == "ends"
        if runlog is not None:
            runlog.write(self.progress.global_step, epoch, {f"eval/{key}": v for key, v in metrics.items()})
        return is_better

    def _keep_best(self, value: float, epoch: int, runlog: RunLog | None) -> bool:
        """Record a validation's value; return whether it is the best so far."""
        self.progress = self.progress.validated(value)
        is_better = self.progress.best_step == self.progress.global_step
        if runlog is not None and time.monotonic() - self._said_s >= SAY_EVERY_S:
            self._said_s = time.monotonic()
            best = " (best)" if is_better else ""
            log.info("epoch %d: validation %s %.4f%s", epoch + 1, self.config.stop_metric, value, best)
        return is_better

    def _write_checkpoint(self, *, is_stop: bool = False) -> None:
        # If it were averaged, a run that is stopped within an epoch would resume with a different rounding.
        of_workers = self.statistics.of_workers() if is_stop else None
        self.statistics.average()
        check_trained(self.network, self.average.state, self.config, self.progress.global_step)
        self._saved = self.progress
        state = self.method.state()
        if self.group.is_first:
            self.checkpoints.write(
                self.progress,
                network=self.network.state_dict(),
                average=self.average.state,
                optimizer=self.optimizer.state_dict(),
                method=state,
                catalogue=self.catalogue.fingerprint,
                statistics=of_workers,
            )
            tables = tables_of(self.checkpoints.prune()) | tables_in(state)
            NeighbourTable.prune(self.run / "mining", keep=tables)
        self.group.barrier()
