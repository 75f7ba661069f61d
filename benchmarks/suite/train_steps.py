"""One step of the training loop, compared with the same step written by hand; and how long steps wait for data."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.suite.interleave import interleave
from benchmarks.suite.peers_train import BareDeepKNN, BarePCN, bare_network, bare_optimizer, copy_of
from benchmarks.suite.report import Table, Target, timing_table
from benchmarks.suite.train_setup import BenchData, make_trainer
from cluster.planning.machine_rates import load_steps
from fsl_dist.methods.pcn import PCN
from fsl_dist.samplers.episode import Episode
from fsl_dist.training.loop import Trainer
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.step import PlannedStep

OURS, BARE, TUNED, COMPILED, GHOST = (
    "fsl-dist",
    "bare loop",
    "bare loop, tuned",
    "fsl-dist, compiled",
    "fsl-dist, groups of 32",
)


@dataclass(slots=True)
class Found:
    """Part of a report."""

    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        """Put another part's findings behind these."""
        self.tables += other.tables
        self.targets += other.targets
        self.notes += other.notes


def measure_step(
    data: BenchData, network: str, method: str, *, folder: Path, repeats: int, rounds: int,
    compiles: bool = False, more: Sequence[str] = (),
) -> Found:  # fmt: skip
    """One network with one method: our step, the bare loop as torch's defaults have it, and one with our settings.

    All of them keep freed memory (`index.runtime`), since one process does.
    """
    trainer = make_trainer(data.config(network, method, folder / f"step-{network}-{method}", more))
    planned, (images,) = load_steps(trainer, 0, 1)[0][0]
    bare = bare_network(network, images.shape[1], images.shape[-1]).train()
    plain = images.contiguous()
    contenders = {
        OURS: _ours(trainer, planned, images),
        BARE: _bare(trainer, planned, bare, method, plain, fused=None),
        TUNED: _bare(trainer, planned, copy_of(trainer.network), method, _like(trainer, images), fused=True),
    }
    if method == "deep_knn":
        grouped = data.config(
            network, method, folder / f"ghost-{network}", [*more, "backbone.batch_norm=ghost"]
        )
        contenders[GHOST] = _ours(make_trainer(grouped), planned=None, images=images)
    if compiles:
        compiled = data.config(
            network, method, folder / f"compiled-{network}-{method}", [*more, "training.compile=true"]
        )
        contenders[COMPILED] = _ours(make_trainer(compiled), planned, images)
    _check_losses(contenders)
    measured = interleave(
        {name: _repeated(step, repeats) for name, step in contenders.items()}, unit="step", rounds=rounds
    )
    title = f"{network}, {method}: a step of {len(images)} samples of {'×'.join(map(str, images.shape[1:]))}"
    remark = f"ratio to the tuned loop: {statistics.median(measured.ratios(OURS, TUNED)):.2f}"
    return Found(
        [timing_table(title, measured, base=BARE)],
        [
            Target(f"step of {network} with {method} / bare loop", measured.ratios(OURS, BARE), at_most=1.05,
                   remark=remark)
        ],
    )  # fmt: skip


def _like(trainer: Trainer, images: Tensor) -> Tensor:
    """Images in the memory format of the network's convolutions."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def _ours(trainer: Trainer, planned: PlannedStep | None, images: Tensor) -> Callable[[], float]:
    if planned is None:  # batch norm in groups forwards the images in another order
        planned, (images,) = load_steps(trainer, 0, 1)[0][0]
    return lambda: trainer.take_step(planned, iter([images]))["train/loss"]


def _bare(
    trainer: Trainer,
    planned: PlannedStep,
    network: nn.Module,
    method: str,
    images: Tensor,
    *,
    fused: bool | None,
) -> Callable[[], float]:
    (batch,) = planned.batches
    optimizer = bare_optimizer(network, method, fused=fused)
    if method == "deep_knn":
        labels, by_hand = torch.from_numpy(batch.labels), BareDeepKNN(network, optimizer)
        return lambda: float(by_hand.step(images, labels))
    episode, ours = batch.payload, trainer.method
    assert isinstance(episode, Episode)
    assert isinstance(ours, PCN)
    rows = torch.from_numpy(ours.selection.labels.searchsorted(episode.classes))
    shots = episode.support.shape[1]
    pcn = BarePCN(network, optimizer, ours.memory.means, shots=shots, temperature=ours.method.temperature)
    return lambda: float(pcn.step(images, rows))


def _check_losses(contenders: dict[str, Callable[[], float]]) -> None:
    """The first step of the tuned loop has our network's parameters, so it must find our loss.

    To a hundredth: torch.cdist multiplies raw vectors beyond 25 rows, which lost 0.7 % on an untrained ResNet18.
    """
    ours, tuned = contenders[OURS](), contenders[TUNED]()
    if abs(ours - tuned) > 0.01 * abs(ours):
        raise AssertionError(f"the bare loop computes another loss: {tuned} instead of {ours}")


def _repeated(step: Callable[[], float], repeats: int) -> Callable[[], float]:
    def go() -> float:
        for _ in range(repeats):
            step()
        return repeats

    return go


def measure_wait(data: BenchData, *, folder: Path, steps: int, more: Sequence[str] = ()) -> Found:
    """A real run on packed images, decoded concurrently with the steps: the share of steps that waited."""
    config = data.config(
        "resnet18", "pcn", folder / "wait", [f"episode.per_epoch={steps}", "training.epochs=1", *more]
    )
    make_trainer(config).train()
    lines = [line for line in read_metrics(folder / "wait") if "time/step_s" in line]
    first, others = lines[0], lines[1:]
    shares = [line["time/data_wait_s"] / line["time/step_s"] for line in others]
    step_ms = 1000 * statistics.median(line["time/step_s"] for line in others)
    table = Table(
        f"Waiting for images: a run of ResNet18 with PCN, {len(lines)} steps, its images decoded meanwhile",
        ("", "step ms", "of which waiting %"),
        (
            ("first step of the epoch", round(1000 * first["time/step_s"]), _percent(first)),
            ("the others, median", round(step_ms), round(100 * statistics.median(shares), 2)),
        ),
    )
    target = Target(
        "data wait / step", shares, at_most=0.03, is_guarded=False, remark="without an epoch's first step"
    )
    return Found([table], [target])


def _percent(line: dict) -> float:
    return round(100 * line["time/data_wait_s"] / line["time/step_s"], 2)
