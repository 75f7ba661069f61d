"""Estimate a run on many machines from one machine's rates: the figures of `fsl-dist plan` and its main bottleneck."""

from dataclasses import dataclass, field

from cluster.planning.fleet import Fleet, check_rates
from cluster.planning.rates import Rate, Rates
from cluster.planning.scaling_model import (
    core_seconds,
    file_bytes,
    gather_bytes,
    looked_at,
    ring_bytes,
    search_work,
    seconds_of,
    step_seconds,
    vector_bytes,
)
from cluster.planning.workload import SELECTION_BYTES, Workload, count_workload
from fsl_dist.config import RunConfig

_NETWORK_SHARE = 0.1  # share of a step above which the network counts as too slow

WAYS_OUT = {
    "memory": "more memory a machine, fewer processes a machine, index.kind=ivf_pq, or a smaller embedding (backbone.embedding_dim)",
    "idle processes": "more episodes or images per step (episode.per_step=0, episode.scope=global, training.batch_size), or fewer workers",
    "computing": "more workers, or a smaller network; there is no other bottleneck",
    "loading": "more data.threads where cores are idle, images stored at the size of training (`pack --resize-shorter`), decoding on the GPU",
    "cores": "more cores a process; images stored at the size of training (`pack --resize-shorter`) cost fewer",
    "storage": "faster storage, or images stored at the size of training (`pack --resize-shorter`)",
    "network": "a faster network, or more images per step and process, so that gradients are averaged less often",
    "refresh: embedding": "fewer refreshes (mining.refresh_steps), or more workers",
    "refresh: writing the index": "a smaller embedding (backbone.embedding_dim), or fewer refreshes (mining.refresh_steps)",
    "refresh: publishing the index": "one process does it for all: a smaller embedding (backbone.embedding_dim), index.kind=flat, fewer refreshes",
    "refresh: opening the index": "every machine reads all of it: faster storage, a smaller embedding (backbone.embedding_dim)",
    "refresh: searching": "index.kind=ivf_pq or ivf_flat with few nprobe, fewer refreshes (mining.refresh_steps), mining.source=batch",
    "refresh: k-means": "fewer evaluation.kmeans_runs or method.clusters; processes beyond the number of classes do not help",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The estimate for a run."""

    figures: dict[str, float]
    """by name, units in the names"""
    basis: dict[str, str]
    """of each figure: counted, measured, extrapolated or assumed"""
    bottleneck: str
    """the main bottleneck, a key of `WAYS_OUT`"""
    parts: dict[str, float]
    """seconds of an epoch by activity"""


@dataclass(slots=True)
class _Ledger:
    """Figures as they are computed; a figure's basis is the weakest of its inputs."""

    figures: dict[str, float] = field(default_factory=dict)
    basis: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, value: float, *basis: str) -> float:
        ranks = ["counted", "given", "measured", "extrapolated", "assumed"]
        self.figures[name] = value
        self.basis[name] = max(basis, key=ranks.index)
        return value


def plan_run(
    config: RunConfig, rates: Rates, fleet: Fleet, *, num_images: int, classes: int, place: str
) -> Plan:
    """Plan `config` on `fleet` over `num_images` training images of `classes`, by `rates`,
    whose file is `place` in errors.

    Raises RequestError if a rate is missing or belongs to another device.
    """
    check_rates(config, rates, fleet, place)
    work = count_workload(config, num_images, fleet.processes)
    ledger = _Ledger()
    ledger.note("processes", work.processes, "counted")
    ledger.note("busy_processes", work.busy, "counted")
    ledger.note("steps", work.steps, "counted")
    ledger.note("step_images", work.step_images, "counted")
    parts = _plan_steps(ledger, config, rates, fleet, work, classes, place)
    if work.refresh != "none":
        parts |= _plan_refresh(ledger, config, rates, fleet, work, num_images, classes, place)
    epoch_s = ledger.note("epoch_s", sum(parts.values()), *ledger.basis.values())
    ledger.note("images_per_second", work.steps * work.step_images / epoch_s, ledger.basis["epoch_s"])
    _plan_memory(ledger, config, rates, fleet, work, num_images)
    longest = max(parts, key=lambda part: parts[part])
    if ledger.figures["machine_memory_gb"] > rates.machine.memory_gb:
        longest = "memory"
    elif work.busy < work.processes:
        longest = "idle processes"
    return Plan(ledger.figures, ledger.basis, longest, parts)


def _basis(*rates: Rate, extrapolates: bool) -> str:
    if not all(rate.is_measured for rate in rates):
        return "assumed"
    return "extrapolated" if extrapolates else "measured"


def _plan_steps(
    ledger: _Ledger,
    config: RunConfig,
    rates: Rates,
    fleet: Fleet,
    work: Workload,
    classes: int,
    place: str,
) -> dict[str, float]:
    """Record a step's figures; return the seconds of an epoch's steps, by limiting part."""
    load, train = rates.needed("load", place), rates.needed("train", place)
    cores = rates.machine.cores / fleet.per_worker
    # The model was compared with two processes on one machine; steps of twice or half the size were not timed.
    is_far = work.processes > 2 or not 0.5 <= work.share / rates.work.step_images <= 2
    basis = _basis(load, train, extrapolates=is_far)
    loaded = work.share * work.loads
    load_s = ledger.note("load_s", loaded / load.per_s, _basis(load, extrapolates=is_far))
    compute_s = ledger.note("compute_s", work.share / train.per_s, _basis(train, extrapolates=is_far))
    # Networks end in a classifier over the training classes; their number may differ from that of the measured network.
    gradient = rates.work.gradient_bytes
    if config.method.traits.has_classifier:
        gradient += 4 * (rates.work.embedding_dim + 1) * (classes - rates.work.classes)
    ledger.note("gradient_mb", gradient / 1e6, "counted")
    sent = ring_bytes(gradient, work.processes)
    if work.is_global:
        sent += gather_bytes(work.step_images, rates.work.embedding_dim, work.processes)
    network_s, reduce_core_s, network_basis = _network(rates, fleet, sent, place)
    ledger.note("network_s", network_s, network_basis)
    storage, storage_basis = _storage(rates, fleet, place)
    read = work.step_images * work.loads * rates.work.image_bytes
    storage_s = ledger.note("storage_s", read / storage, storage_basis)
    core_s = core_seconds(loaded, load) + core_seconds(work.share, train) + reduce_core_s
    cores_s = ledger.note("cores_s", core_s / cores, basis)
    step_s = ledger.note(
        "step_s",
        step_seconds(
            load_s=load_s, storage_s=storage_s, compute_s=compute_s, network_s=network_s, cores_s=cores_s
        ),
        *(ledger.basis[name] for name in ("load_s", "compute_s", "network_s", "storage_s", "cores_s")),
    )
    others_s = max(load_s, compute_s, cores_s)
    tenth = 8e-9 * sent / (_NETWORK_SHARE * others_s)
    ledger.note("network_gbit_needed", tenth, basis)
    ledger.note(
        "storage_mb_s_needed", read / 1e6 / max(others_s, compute_s + network_s), basis, network_basis
    )
    held_up = {"loading": load_s, "storage": storage_s, "cores": cores_s}
    worst = max(held_up, key=lambda part: held_up[part])
    if held_up[worst] > compute_s + network_s:
        return {worst: work.steps * step_s}
    return {"computing": work.steps * compute_s, "network": work.steps * network_s}


def _network(rates: Rates, fleet: Fleet, sent: float, place: str) -> tuple[float, float, str]:
    """Seconds of a link for `sent` bytes, the CPU time for it, and the basis of both."""
    if fleet.processes == 1:
        return 0.0, 0.0, "counted"
    if fleet.network_gbit is not None:
        return sent * 8e-9 / fleet.network_gbit, 0.0, "given"
    reduce = rates.needed("reduce", place, instead="--network-gbit")
    basis = _basis(reduce, extrapolates=fleet.processes > 2)
    return sent / 1e6 / reduce.per_s, core_seconds(sent / 1e6, reduce), basis


def _storage(rates: Rates, fleet: Fleet, place: str) -> tuple[float, str]:
    """Bytes per second that all machines together get from the storage, and the basis."""
    if fleet.storage_mb_s is not None:
        return fleet.storage_mb_s * 1e6, "given"
    read = rates.needed("read", place, instead="--storage-mb-s")
    return read.per_s * 1e6 * fleet.workers, _basis(read, extrapolates=fleet.workers > 1)


def _plan_refresh(
    ledger: _Ledger,
    config: RunConfig,
    rates: Rates,
    fleet: Fleet,
    work: Workload,
    num_images: int,
    classes: int,
    place: str,
) -> dict[str, float]:
    """Record the cost of a refresh; return the seconds that an epoch waits for it, by its parts."""
    is_beside = config.mining.is_beside
    processes = config.mining.actors if is_beside else fleet.processes
    cores = float(config.mining.cpus) if is_beside else rates.machine.cores / fleet.per_worker
    is_far = num_images > 10 * rates.work.vectors or processes > 2
    share, dim = num_images / processes, rates.work.embedding_dim
    storage, storage_basis = _storage(rates, fleet, place)

    def note(part: str, units: float, name: str) -> float:
        rate = rates.needed(name, place)
        return ledger.note(
            f"refresh_{part}_s", seconds_of(units, rate, cores), _basis(rate, extrapolates=is_far)
        )

    load, embed = rates.needed("load", place), rates.needed("embed", place)
    embed_s = ledger.note(
        "refresh_embed_s",
        step_seconds(
            load_s=share / load.per_s,
            storage_s=num_images * rates.work.image_bytes / storage,
            compute_s=share / embed.per_s,
            network_s=0.0,
            cores_s=(core_seconds(share, load) + core_seconds(share, embed)) / cores,
        ),
        _basis(load, embed, extrapolates=processes > 2),
        storage_basis,
    )
    parts = {"refresh: embedding": embed_s}
    parts["refresh: writing the index"] = note("write", share, "index_write")
    parts["refresh: publishing the index"] = note("publish", num_images, "index_publish")
    if work.refresh == "mining":
        # Data that was just written is in the page cache of one machine; others read all of it.
        opened = file_bytes(dim, num_images) * fleet.workers if fleet.workers > 1 else 0.0
        parts["refresh: opening the index"] = ledger.note("refresh_open_s", opened / storage, storage_basis)
        compared = search_work(num_images, processes, looked_at(config.index, dim, num_images))
        parts["refresh: searching"] = note("search", compared, "mining")
    else:
        most = -(-classes // processes) / classes  # classes are dealt whole
        parts["refresh: k-means"] = note("kmeans", num_images * most, "kmeans")
    total = sum(parts.values())
    basis = [ledger.basis[name] for name in ledger.basis if name.startswith("refresh_")]
    ledger.note("refresh_s", total, *basis)
    ledger.note("refreshes", work.refreshes, "counted")
    lag = config.mining.refresh_lag * ledger.figures["step_s"] if is_beside else 0.0
    waited = ledger.note("refresh_wait_s", max(0.0, total - lag), *basis, ledger.basis["step_s"])
    return {part: seconds * work.refreshes * waited / total for part, seconds in parts.items()}


def _plan_memory(
    ledger: _Ledger, config: RunConfig, rates: Rates, fleet: Fleet, work: Workload, num_images: int
) -> None:
    """Record the cost of an index of the training images, served in shards and opened by processes that mine."""
    dim = rates.work.embedding_dim
    opened = vector_bytes(config.index, dim, num_images) * num_images
    ledger.note("index_disk_gb", file_bytes(dim, num_images) / 1e9, "counted")
    ledger.note("index_memory_gb", opened / 1e9, "counted")
    ledger.note("index_shard_memory_gb", opened / 1e9 / config.index.shards, "counted")
    mines = work.refresh == "mining" and not config.mining.is_beside
    process = SELECTION_BYTES * num_images + (opened if mines else 0.0)
    ledger.note("machine_memory_gb", process * fleet.per_worker / 1e9, "counted")
