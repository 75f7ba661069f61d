"""`python -m benchmarks.suite train`: training steps, waiting for images, and clustering, compared with peers."""

import torch

from benchmarks.suite.report import BenchOptions, Report
from benchmarks.suite.train_clusters import (
    CASES,
    SMOKE_CASES,
    measure_clustering,
    measure_epoch,
    measure_pass,
)
from benchmarks.suite.train_memory import measure_kept_memory
from benchmarks.suite.train_setup import describe_data, make_data
from benchmarks.suite.train_steps import Found, measure_step, measure_wait
from index.runtime import flushing_denormals

# About half a second a round and contender on two cores.
_REPEATS = {"conv4": 4, "mlp": 60}
_SMALL = {"pcn": ("episode.n_way=5", "episode.k_shot=5"), "deep_knn": ("training.batch_size=63",)}
_NETWORKS = ("conv4", "resnet18", "resnet18 at 224 px", "mlp")


@flushing_denormals(torch.set_flush_denormal)
def measure(options: BenchOptions) -> Report:
    """Run all parts; with `is_smoke` those whose ratios mean something on any machine, at small sizes."""
    data = make_data(options)
    folder, rounds, is_smoke = options.folder, options.rounds, options.is_smoke
    found = Found()
    for network in ("conv4", "mlp") if is_smoke else _NETWORKS:
        for method in ("pcn", "deep_knn"):
            is_small = is_smoke or network == "resnet18 at 224 px"
            repeats = _REPEATS.get(network, 1) if not is_smoke else 20 if network == "mlp" else 2
            found.add(
                measure_step(
                    data, network, method, folder=folder, rounds=rounds, repeats=repeats,
                    more=_SMALL[method] if is_small else (),
                    compiles=not is_small and method == "pcn",
                )
            )  # fmt: skip
    found.add(measure_clustering(SMOKE_CASES if is_smoke else CASES, rounds=rounds))
    sizes = (300,) * 6 if is_smoke else (600,) * 35
    found.add(measure_epoch(data, folder=folder, rounds=rounds, steps=2, sizes=sizes))
    if not is_smoke:
        found.add(measure_pass(data, folder=folder, rounds=rounds))
        found.add(measure_kept_memory(data, folder=folder, rounds=rounds))
        found.add(measure_wait(data, folder=folder, steps=20))
    return Report(
        benchmark="train",
        title="Compares the training loop's step with a step written by hand on tensors in memory, and PCN's "
        "clustering with scikit-learn's. Also measures how long steps wait for images.",
        config=describe_data(options),
        tables=found.tables,
        targets=found.targets,
        notes=[
            "The bare loop uses torch's defaults: contiguous images, an optimizer that is not fused, one "
            "group of batch norm. The tuned loop uses the network and settings of fsl-dist: channels_last and"
            " a fused optimizer.",
            "Both loops keep freed memory, because they run in the process of fsl-dist. A custom loop would "
            "release it; the table “Freed memory” shows the cost. ResNet18 at 64 px is faster with contiguous"
            " images, but most networks and sizes are not (`python -m benchmarks.bench_memory_format`), so "
            "networks use channels_last. The same step differs by up to a tenth between processes, depending "
            "on the memory pages they get.",
            *found.notes,
        ],
        is_smoke=is_smoke,
    )
