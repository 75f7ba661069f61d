"""Batch norm whose result does not depend on how a batch is divided among workers and chunks.

There are three modes. `batch` uses the statistics of each forward call. `frozen` uses the running statistics and does
not change them. `ghost` uses the statistics of fixed groups of images, so that a batch of several groups gives the
same result as the groups one by one. Weights, buffers and state_dict keys are those of torch's own layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fsl_dist.errors import TrainingError

BatchNormMode = Literal["batch", "frozen", "ghost"]


class _ChangedBatchNorm(_BatchNorm):
    """A converted torch or timm batch norm, which remembers its original class."""

    plain_type: type[_BatchNorm] = nn.BatchNorm2d

    def finish(self, normalised: Tensor) -> Tensor:
        """The steps after normalising: dropout and activation in timm's BatchNormAct2d, nothing in torch's."""
        for stage in self.children():
            normalised = stage(normalised)
        return normalised


class FrozenBatchNorm(_ChangedBatchNorm):
    """Normalises by the running statistics, in training too; they never move, weight and bias do."""

    stays: bool = False
    """whether other modes do not apply to this layer"""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `input` (float [n, C] or [n, C, h, w]), same shape."""
        return self.finish(
            functional.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        )


class GhostBatchNorm(_ChangedBatchNorm):
    """Normalises each group of a call by the group's own statistics (Hoffer, Hubara & Soudry 2017).

    In training the first `sizes[0]` images are one group, the next `sizes[1]` another, and so on; without sizes the
    whole call is one group, as in torch. The running statistics move once a call, by the groups' statistics
    averaged by size (variances unbiased, as in torch). In eval mode the running statistics are used.
    """

    sizes: tuple[int, ...] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalised `input` (float [n, C] or [n, C, h, w]), same shape.

        Raises TrainingError where the sizes do not add up to n or a group has one value a channel.
        """
        if not self.training:
            return self.finish(
                functional.batch_norm(
                    input,
                    self.running_mean,
                    self.running_var,
                    self.weight,
                    self.bias,
                    training=False,
                    eps=self.eps,
                )
            )
        sizes = self.sizes if self.sizes is not None else (len(input),)
        self._check_sizes(input, sizes)
        assert self.running_mean is not None
        parts, means, variances = [], [], []
        for part in input.split(list(sizes)):
            # With momentum 1 the kernel leaves the group's own mean and unbiased variance in these two.
            mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_mean)
            parts.append(
                functional.batch_norm(
                    part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps
                )
            )
            means.append(mean)
            variances.append(variance)
        if self.track_running_stats:
            self._update_running_statistics(means, variances, sizes)
        return self.finish(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _check_sizes(self, input: Tensor, sizes: tuple[int, ...]) -> None:
        if sum(sizes) != len(input):
            raise TrainingError(
                f"ghost batch norm was set to groups of {sum(sizes)} images in all ({len(sizes)} groups), "
                f"this call forwards {len(input)}: set_ghost_groups must name this call's groups"
            )
        values_per_image = input[0].numel() // self.num_features if len(input) else 0
        if min(sizes, default=0) * values_per_image < 2:
            raise TrainingError(
                f"ghost batch norm needs two values a channel in every group; a group of {min(sizes, default=0)} "
                f"with {values_per_image} a sample has fewer (a larger batch, or backbone.batch_norm=frozen)"
            )

    @torch.no_grad()
    def _update_running_statistics(
        self, means: list[Tensor], variances: list[Tensor], sizes: tuple[int, ...]
    ) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        shares = torch.tensor(sizes, dtype=self.running_mean.dtype, device=self.running_mean.device)
        shares = shares / shares.sum()
        with torch.autocast(shares.device.type, enabled=False):  # autocast would compute the products in bf16
            self.running_mean.lerp_(shares @ torch.stack(means), momentum)
            self.running_var.lerp_(shares @ torch.stack(variances), momentum)


def apply_batch_norm(model: nn.Module, mode: BatchNormMode) -> None:
    """Set every batch norm inside `model` to `mode`, in place; parameters and buffers are kept.

    It may be called again with another mode. Layers of `freeze_batch_norms` stay frozen. `model` itself must not be a
    batch norm, because it could not be replaced.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, _ChangedBatchNorm)):
                setattr(parent, name, _with_mode(child, mode))


def freeze_batch_norms(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze the batch norms `names` of `model` permanently, in place,
    regardless of later calls of `apply_batch_norm`."""
    for name in names:
        parent, _, own = name.rpartition(".")
        norm = model.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        frozen = _with_mode(norm, "frozen")
        assert isinstance(frozen, FrozenBatchNorm)
        frozen.stays = True
        setattr(model.get_submodule(parent), own, frozen)


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Let each training call move the running statistics inside `model` by the share `momentum` (0 < momentum ≤ 1)."""
    for norm in _batch_norms(model):
        norm.momentum = momentum


def _with_mode(norm: _BatchNorm, mode: BatchNormMode) -> _BatchNorm:
    """`norm` as the class of `mode`, with the same parameters and buffers."""
    plain_type = norm.plain_type if isinstance(norm, _ChangedBatchNorm) else type(norm)
    wanted: type[_BatchNorm]
    match mode:
        case "batch":
            wanted = plain_type
        case "frozen":
            wanted = FrozenBatchNorm
        case "ghost":
            wanted = GhostBatchNorm
    if type(norm) is wanted or (isinstance(norm, FrozenBatchNorm) and norm.stays):
        return norm
    changed = wanted(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
    changed.weight, changed.bias = norm.weight, norm.bias
    changed.running_mean, changed.running_var = norm.running_mean, norm.running_var
    changed.num_batches_tracked = norm.num_batches_tracked
    changed.train(norm.training)
    for name, after in norm.named_children():
        changed.add_module(name, after)
    if isinstance(changed, _ChangedBatchNorm):
        changed.plain_type = plain_type
    return changed


def resolve_batch_norm(
    mode: Literal["auto", "batch", "frozen", "ghost"],
    *,
    is_global: bool,
    is_chunked: bool,
    has_weights: bool = False,
) -> BatchNormMode:
    """Resolve `auto`: `frozen` if the network starts from weights; otherwise `ghost` for divided batches, else `batch`.

    Batches are divided if they are global or if there are chunks. The statistics of a pretrained network come from many
    images, and those of a few images per class would be a poor replacement.
    """
    if mode != "auto":
        return mode
    if has_weights:
        return "frozen"
    return "ghost" if is_global or is_chunked else "batch"


def group_sizes(num: int, group: int) -> list[int]:
    """Sizes of the groups into which `num` images are divided, larger ones first; they differ by at most 1.

    There are ⌈num / group⌉ groups, or fewer if a group would have only one image. A pure function of its arguments,
    so that workers and chunks agree without communication. `num` 0 has no groups.
    """
    if num == 0:
        return []
    num_groups = max(1, min(-(-num // group), num // 2))
    size, larger = divmod(num, num_groups)
    return [size + 1] * larger + [size] * (num_groups - larger)


def deal_to_groups(labels: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    """Order of a batch (int64 [n]) in which the consecutive `group_sizes(n, group)` contain the classes evenly.

    The positions sorted by `labels` (int64 [n]) are distributed round-robin, so each of the G groups gets ⌊c/G⌋ or
    ⌈c/G⌉ of a class of c images. Deterministic: images of one class keep their order.
    """
    num_groups = len(group_sizes(len(labels), group))
    by_label = np.argsort(labels, kind="stable").astype(np.int64)
    if num_groups < 2:
        return by_label
    return np.concatenate([by_label[first::num_groups] for first in range(num_groups)])


def set_ghost_groups(model: nn.Module, sizes: Sequence[int] | None) -> None:
    """Set the groups of the next forward calls: consecutive `sizes` images; None makes each call one group.

    The setting is kept until it is changed; a training call of another length is refused.
    """
    for module in model.modules():
        if isinstance(module, GhostBatchNorm):
            module.sizes = None if sizes is None else tuple(sizes)


@contextmanager
def updating_running_statistics(model: nn.Module, on: bool) -> Iterator[None]:
    """Inside the block, let training calls move running statistics (`on`) or leave them alone.

    A pass that is repeated must move them once only. Outputs and gradients do not depend on it.
    """
    norms = _batch_norms(model)
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = on
        yield
    finally:
        for norm, was in zip(norms, before, strict=True):
            norm.track_running_stats = was


def as_one_call(model: nn.Module, sizes: Sequence[int], share: float = 1.0) -> Iterator[int]:
    """Yield 0, 1 … for training calls of `sizes[0]`, `sizes[1]` … images that together count as one call.

        for number in as_one_call(model, [6, 4]):
            model(chunks[number])

    Running statistics change as in one call of all the groups. Each call starts from the same statistics, and the
    results are averaged, weighted by size. This equals one call, since the update is linear in the groups' statistics.

    share: share of these images among those of all workers that make the same calls and average their running
    statistics later, times the number of workers. A worker's update is weighted by its share, while the old
    statistics decay equally on all workers. So the average is the result of one worker with all images, even if the
    workers have different numbers of images, or none (`sizes` empty, share 0).
    """
    if len(sizes) == 1 and share == 1.0:
        yield 0
        return
    norms = [norm for norm in _batch_norms(model) if not isinstance(norm, FrozenBatchNorm)]
    statistics = [
        (part, norm.momentum)
        for norm in norms
        for part in (norm.running_mean, norm.running_var)
        if part is not None
    ]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    starts = [part.clone() for part, _ in statistics]
    first_counts = [count.clone() for count in counts]
    means = [torch.zeros_like(start) for start in starts]
    for number, size in enumerate(sizes):
        for (part, _), start in zip(statistics, starts, strict=True):
            part.copy_(start)
        for count, first in zip(counts, first_counts, strict=True):
            count.copy_(first)
        yield number
        for mean, (part, _) in zip(means, statistics, strict=True):
            mean.add_(part, alpha=size / sum(sizes))
    for (part, momentum), start, mean in zip(statistics, starts, means, strict=True):
        if momentum is None:  # a cumulative average has no weights
            part.copy_(mean if len(sizes) else start)
            continue
        faded = start * (1 - momentum)
        part.copy_(faded + share * (mean - faded) if len(sizes) else faded)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances themselves, not copies, each float [channels], in the order of the modules."""
    pairs = ((norm.running_mean, norm.running_var) for norm in _batch_norms(model))
    return [statistic for pair in pairs for statistic in pair if statistic is not None]


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
