"""Training steps: precisions, memory format, compilation and optimizers; this project's step compared with a bare
loop; who waits."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu.outcome import Outcome, Setting, median_s, round_to, wait, without_tf32
from benchmarks.suite.report import Table

CLASSES = 100
_NETWORKS = {"resnet50": (224, 128), "resnet18": (224, 256), "conv4": (84, 256)}
_SMALL = {"conv4": (28, 16)}


def build(name: str, side: int, setting: Setting, *, batch_norm: str = "batch") -> Any:
    """The project's network with a classifier, the same weights at each call, channels last."""
    from fsl_dist.models.backbones import build_network
    from fsl_dist.models.config import BackboneConfig

    torch.manual_seed(0)
    config = BackboneConfig(name=name, batch_norm=batch_norm)  # type: ignore[arg-type]
    network = build_network(config, sample_shape=(3, side, side), num_classes=CLASSES)
    return network.to(setting.device).train()


def make_batch(side: int, num: int, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [num, 3, side, side] and targets int64 [num], on the device."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, side, side, generator=generator)
    targets = torch.randint(CLASSES, (num,), generator=generator)
    return images.to(setting.device), targets.to(setting.device)


def make_loop(
    network: torch.nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    use_bf16: bool,
    optimizer: torch.optim.Optimizer,
) -> Callable[[], torch.Tensor]:
    """A bare loop's step: forward, cross entropy, backward, optimizer."""

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=use_bf16):
            logits = network(images)
        loss = functional.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(setting: Setting) -> Outcome:
    found = Outcome()
    table: list[tuple[str | float, ...]] = []
    for name, (side, num) in (_SMALL if setting.is_small else _NETWORKS).items():
        table += _variants(found, name, side, num, setting)
        table += _own_step(found, name, side, num, setting)
        _compare_precisions(found, name, side, num, setting)
        _compare_chunks(found, name, side, min(num, 64), setting)
    found.tables.append(
        Table("Training steps", ("", "images/s", "ms/step", "peak GB on the GPU"), tuple(table))
    )
    return found


def _timed(
    name: str, step: Callable[[], object], num: int, setting: Setting
) -> tuple[tuple[str | float, ...], float]:
    if setting.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = median_s(step, setting, repeats=1 if setting.is_small else 10)
    peak = torch.cuda.max_memory_allocated() / 1e9 if setting.is_gpu else 0.0
    return (name, round_to(num / seconds), round_to(1000 * seconds), round_to(peak)), seconds


def _variants(
    found: Outcome, name: str, side: int, num: int, setting: Setting
) -> list[tuple[str | float, ...]]:
    """Rows of one network's bare loop in its precisions, formats, optimizers."""
    images, targets = make_batch(side, num, setting)
    rows = []
    compiles = setting.is_gpu and not setting.is_small
    if not compiles:
        found.notes.append(f"training: {name}: torch.compile is not timed at small sizes or without a GPU")
    ways: dict[str, dict[str, Any]] = {
        "float32": {},
        "float32, TF32": {"tf32": True},
        "bf16": {"bf16": True},
        "bf16, channels first": {"bf16": True, "format": torch.contiguous_format},
        "bf16, images channels last too": {"bf16": True, "images": True},
        "bf16, optimizer not fused": {"bf16": True, "fused": False},
        **({"bf16, compiled": {"bf16": True, "compile": True}} if compiles else {}),
    }
    for way, options in ways.items():
        without_tf32(not options.get("tf32", False))
        network = build(name, side, setting)
        network.to(memory_format=options.get("format", torch.channels_last))
        given = images.contiguous(memory_format=torch.channels_last) if "images" in options else images
        optimizer = torch.optim.Adam(network.parameters(), fused=options.get("fused", True))
        if options.get("compile"):
            network.compile()
        step = make_loop(network, given, targets, use_bf16=options.get("bf16", False), optimizer=optimizer)
        rows.append(_timed(f"{name}, bare loop, {way}", step, num, setting)[0])
    without_tf32()
    return rows


def _plan(num: int, setting: Setting, chunk_size: int) -> tuple[Any, list[Any]]:
    """The project's cross entropy on one batch of `num` images: the method, and the step's requests for images."""
    from types import SimpleNamespace

    import numpy as np

    from fsl_dist.config import load_config
    from fsl_dist.data.selection import Selection
    from fsl_dist.distributed import WorkerGroup
    from fsl_dist.training.step import step_requests

    config = load_config(None, ["method.kind=cross_entropy", f"training.batch_size={num}"])
    # A multiple of the batch, or steps would be smaller than it.
    labels = np.sort(np.arange(num * -(-CLASSES // num), dtype=np.int64) % CLASSES)
    selection = Selection.from_labels(np.arange(len(labels)), labels)
    # Labels are all that the method reads of a catalogue.
    method = config.build_method(SimpleNamespace(labels=labels), selection, setting.device)  # type: ignore[arg-type]
    requests = list(
        step_requests(
            method, 0, range(1), group=WorkerGroup(), is_ghost=False, ghost_group=32, chunk_size=chunk_size
        )
    )
    return method, requests


def _make_own(
    network: Any,
    images: torch.Tensor,
    setting: Setting,
    *,
    use_bf16: bool,
    optimizer: Any,
    chunk_size: int = 0,
) -> Callable[[], dict[str, float]]:
    from fsl_dist.distributed import WorkerGroup
    from fsl_dist.training.step import run_step

    method, requests = _plan(len(images), setting, chunk_size)
    planned = requests[0].tag
    group = WorkerGroup()
    sizes = [len(request.ids) for request in requests]
    # Chunks go twice, so their images come twice.
    parts = images.repeat(sum(sizes) // len(images), 1, 1, 1).split(sizes)

    def step() -> dict[str, float]:
        network.zero_grad(set_to_none=True)
        result = run_step(
            network, method, planned, iter(parts), group=group, device=setting.device, use_bf16=use_bf16
        )
        if optimizer is not None:
            optimizer.step()
        return result.metrics

    return step


def _own_step(
    found: Outcome, name: str, side: int, num: int, setting: Setting
) -> list[tuple[str | float, ...]]:
    """The project's step compared with the bare loop, in bf16 with a fused optimizer, and where it waits for the
    device."""
    images, targets = make_batch(side, num, setting)
    steps = {}
    for which in ("bare", "own"):
        network = build(name, side, setting)
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        if which == "bare":
            steps[which] = make_loop(network, images, targets, use_bf16=True, optimizer=optimizer)
        else:
            steps[which] = _make_own(network, images, setting, use_bf16=True, optimizer=optimizer)  # type: ignore[assignment]
    bare = _timed(f"{name}, bare loop again, bf16", steps["bare"], num, setting)
    own = _timed(f"{name}, this project's step, bf16", steps["own"], num, setting)
    if setting.is_gpu and not setting.is_small:
        found.check(f"training: {name}: this project's step over the bare loop's", own[1] / bare[1], 1.05)
        waits = find_waits(steps["own"])
        for place, times in waits.most_common():
            found.notes.append(f"training: {name}: the step waits for the GPU at {place}, {times} times")
        found.check(f"training: {name}: waits of one step", sum(waits.values()), 1.0, "its metrics' figures")
    return [bare[0], own[0]]


def find_waits(step: Callable[[], object]) -> "Counter[str]":
    """Places in Python, file:line, where one call of `step` makes the host wait for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return Counter(f"{'/'.join(warning.filename.split('/')[-3:])}:{warning.lineno}" for warning in said)


def _compare_precisions(found: Outcome, name: str, side: int, num: int, setting: Setting) -> None:
    """The first loss in bf16 against float32: distances and losses are float32 in both."""
    images, _ = make_batch(side, num, setting)
    losses = [
        _make_own(build(name, side, setting), images, setting, use_bf16=use_bf16, optimizer=None)()[
            "train/loss"
        ]
        for use_bf16 in (False, True)
    ]
    apart = abs(losses[0] - losses[1]) / abs(losses[0])
    found.check(f"training: {name}: loss in bf16 away from float32, as a share", apart, 0.02)


def _compare_chunks(found: Outcome, name: str, side: int, num: int, setting: Setting) -> None:
    """Gradient of a batch in chunks against the batch at once, float32, frozen statistics."""
    images, _ = make_batch(side, num, setting)
    gradients = []
    for chunk_size in (0, -(-num // 4)):
        network = build(name, side, setting, batch_norm="frozen")
        _make_own(network, images, setting, use_bf16=False, optimizer=None, chunk_size=chunk_size)()
        wait(setting.device)
        parts = [p.grad.double().flatten().cpu() for p in network.parameters() if p.grad is not None]
        gradients.append(torch.cat(parts))
    apart = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
    found.check(
        f"training: {name}: gradient in 4 chunks away from the whole batch's, as a share", apart, 1e-5
    )
