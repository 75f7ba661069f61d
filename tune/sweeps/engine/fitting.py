"""The number of trials that fit on a cluster."""

from collections.abc import Mapping

from fsl_dist.errors import CapacityError
from tune.sweeps.config import SweepConfig


def count_fitting(config: SweepConfig, resources: Mapping[str, float]) -> int:
    """Number of trials that can run concurrently on a cluster with these `resources`, by Ray's names; 0 if none can."""
    # A sum of binary fractions is a little off: ten trials of 0.1 GPU fit on one.
    return min(
        int(resources.get(name, 0.0) / amount + 1e-9)
        for name, amount in _needed(config).items()
        if amount > 0
    )


def fit_concurrency(config: SweepConfig, resources: Mapping[str, float]) -> int:
    """Number of concurrent trials on a cluster with these `resources`; CapacityError if none can run, or fewer than
    the sweep requests."""
    needed = _needed(config)
    for name, amount in needed.items():
        if amount > resources.get(name, 0.0):
            raise CapacityError(
                f"a trial needs {amount:g} {name}s and the Ray cluster has {resources.get(name, 0.0):g} "
                f"({'resources.gpus=0 trains on the CPU' if name == 'GPU' else 'fewer resources.workers or resources.cpus'})"
            )
    fits = count_fitting(config, resources)
    if config.concurrency > fits:
        raise CapacityError(
            f"concurrency={config.concurrency} trials of {needed['CPU']:g} CPUs and {needed['GPU']:g} GPUs do not "
            f"fit on the Ray cluster's {resources.get('CPU', 0.0):g} CPUs and {resources.get('GPU', 0.0):g} GPUs; "
            f"{fits} do (concurrency=0 takes as many as fit)"
        )
    return config.concurrency or fits


def _needed(config: SweepConfig) -> dict[str, float]:
    return {"CPU": float(config.trial_base().num_cpus), "GPU": float(config.resources.gpus)}
