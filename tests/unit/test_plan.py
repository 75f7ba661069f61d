"""`fsl-dist plan`: formulas by hand, what is named as the first bottleneck, and its one-line errors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cluster.commands.plan import plan
from cluster.planning.fleet import Fleet
from cluster.planning.plan import WAYS_OUT, Plan, plan_run
from cluster.planning.rates import Machine, Rate, Rates, Work, read_rates, render_rates
from cluster.planning.scaling_model import (
    core_seconds,
    gather_bytes,
    looked_at,
    ring_bytes,
    search_work,
    seconds_of,
    step_seconds,
    vector_bytes,
)
from fsl_dist.config import load_config
from index.base.errors import ConfigError, FslDistError, RequestError
from index.config import IndexConfig

RATES = Rates(
    date="2026-01-01",
    machine=Machine(device="cpu", cores=8, memory_gb=16.0),
    work=Work(
        backbone="conv4",
        image_size=28,
        precision="float32",
        embedding_dim=64,
        gradient_bytes=10_000_000,
        image_bytes=1000.0,
        classes=10,
        step_images=32,
        vectors=20_000,
        index_kind="flat",
    ),
    load=Rate(per_s=1000, core_ms=1.0),
    train=Rate(per_s=100, core_ms=10.0),
    embed=Rate(per_s=400, core_ms=2.5),
    kmeans=Rate(per_s=2000, core_ms=0.5),
    index_write=Rate(per_s=1e5),
    index_publish=Rate(per_s=2e5),
    mining=Rate(per_s=1e8),
    reduce=Rate(per_s=100.0, core_ms=1.0),
    read=Rate(per_s=50.0),
)
NETWORK = ["backbone.name=conv4", "data.image_size=28", "data.resize_size=28"]
CE = [*NETWORK, "method.kind=cross_entropy", "training.batch_size=64", "backbone.batch_norm=frozen"]
MINED = [
    *NETWORK,
    "method.kind=deep_knn",
    "method.k_same=5",
    "method.m_other=5",
    "mining.source=dataset",
    "mining.neighbours=decoded",
    "training.batch_size=66",
]
PCN = [*NETWORK, "method.kind=pcn", "episode.n_way=4", "episode.k_shot=5", "episode.n_query=3"]


def planned(
    settings: list[str], fleet: Fleet, *, images: int = 6400, classes: int = 10, rates: Rates = RATES
) -> Plan:
    return plan_run(
        load_config(None, settings), rates, fleet, num_images=images, classes=classes, place="rates.yaml"
    )


def test_formulas() -> None:
    rate = Rate(per_s=100, core_ms=20.0)
    assert core_seconds(50, rate) == 1.0
    assert seconds_of(50, rate, cores=4) == 0.5  # as measured
    assert seconds_of(50, rate, cores=1) == 1.0  # 50 · 20 ms on one core
    assert ring_bytes(100e6, 1) == 0
    assert ring_bytes(100e6, 4) == 150e6
    assert gather_bytes(1000, 64, 4) == 192_000
    assert search_work(1000, 4, 0.5) == 125_000
    parts = {"load_s": 1.0, "storage_s": 2.0, "compute_s": 3.0, "network_s": 0.5, "cores_s": 3.4}
    assert step_seconds(**parts) == 3.5
    assert step_seconds(**{**parts, "storage_s": 9.0}) == 9.0


def test_what_a_query_is_compared_with() -> None:
    assert looked_at(IndexConfig(), 64, 1000) == 1
    assert looked_at(IndexConfig(kind="ivf_flat", nlist=100, nprobe=5), 64, 100_000) == 0.05
    assert looked_at(IndexConfig(kind="ivf_pq"), 64, 1_000_000) == 1 / 16  # 250 of 4 · √N = 4,000
    with pytest.raises(RequestError, match=r"index\.kind=hnsw"):
        looked_at(IndexConfig(kind="hnsw"), 64, 1000)


@pytest.mark.parametrize(
    "config", [IndexConfig(kind="ivf_flat"), IndexConfig(kind="ivf_pq", pq_m=16, pq_bits=6)]
)
def test_memory_of_a_vector_is_its_code_and_its_id(config: IndexConfig) -> None:
    import faiss

    from index.kinds import factory_of

    empty = faiss.index_factory(64, factory_of(config, 64, 5000))
    assert vector_bytes(config, 64, 5000) == empty.code_size + 8


def test_memory_of_a_vector_in_a_graph_is_what_faiss_takes() -> None:
    import faiss

    from index.kinds import fill

    config = IndexConfig(kind="hnsw", hnsw_m=16)
    vectors = np.random.default_rng(0).normal(size=(1500, 64)).astype(np.float32)
    few, many = (len(faiss.serialize_index(fill(b"", vectors[:num], config))) for num in (500, 1500))
    assert vector_bytes(config, 64, 1500) == pytest.approx((many - few) / 1000, rel=0.1)


def test_memory_of_a_vector_searched_exactly() -> None:
    assert vector_bytes(IndexConfig(), 64, 1000) == 256
    assert vector_bytes(IndexConfig(metric="cosine"), 64, 1000) == 0
    with pytest.raises(RequestError, match=r"index\.factory=OPQ16,IVF256,PQ16"):
        vector_bytes(IndexConfig(kind="factory", factory="OPQ16,IVF256,PQ16"), 64, 1000)


def test_an_epoch_by_hand() -> None:
    found = planned(CE, Fleet(workers=2, network_gbit=0.08, storage_mb_s=1.0))
    sent = 10_000_000 + 0.5 * 64 * 64 * 4
    expected = {
        "steps": 100,
        "step_images": 64,
        "busy_processes": 2,
        "load_s": 32 / 1000,
        "compute_s": 32 / 100,
        "network_s": sent / 1e7,
        "storage_s": 64 * 1000 / 1e6,
        "cores_s": (32 * 1e-3 + 32 * 10e-3) / 8,
        "step_s": 0.32 + sent / 1e7,
        "epoch_s": 100 * (0.32 + sent / 1e7),
        "images_per_second": 6400 / (100 * (0.32 + sent / 1e7)),
        # The link that needs 0.032 s for these bytes, and what 64 images need in the time of the rest.
        "network_gbit_needed": sent * 8e-9 / 0.032,
        "storage_mb_s_needed": 0.064 / (0.32 + sent / 1e7),
        "index_disk_gb": 6400 * 256 / 1e9,
        "index_shard_memory_gb": 6400 * 256 / 1e9,
    }
    for name, value in expected.items():
        assert found.figures[name] == pytest.approx(value, rel=1e-12), name
    assert found.bottleneck == "network"
    assert sum(found.parts.values()) == pytest.approx(found.figures["epoch_s"])


def test_what_holds_a_step_up() -> None:
    def bottleneck(rates: Rates = RATES, **fleet: float) -> str:
        given = {"workers": 2, "network_gbit": 100.0, "storage_mb_s": 1000.0, **fleet}
        return planned(CE, Fleet(**given), rates=rates).bottleneck  # type: ignore[arg-type]

    assert bottleneck() == "computing"
    assert bottleneck(network_gbit=0.1) == "network"
    assert bottleneck(storage_mb_s=0.1) == "storage"
    assert bottleneck(dataclasses.replace(RATES, load=Rate(per_s=50))) == "loading"
    assert bottleneck(dataclasses.replace(RATES, load=Rate(per_s=1000, core_ms=200.0))) == "cores"
    # Eight processes share the cores of a machine: 10 ms of CPU an image, one core each, but 11 with loading.
    assert planned(CE, Fleet(processes_per_worker=8, network_gbit=1e6)).bottleneck == "cores"


def test_processes_without_images_come_first() -> None:
    found = planned([*PCN, "episode.per_step=1"], Fleet(workers=4))
    assert (found.bottleneck, found.figures["busy_processes"]) == ("idle processes", 1)
    # 64 images in groups of 32 that nothing cuts.
    found = planned([*CE[:-1], "backbone.batch_norm=ghost"], Fleet(workers=4))
    assert (found.bottleneck, found.figures["busy_processes"]) == ("idle processes", 2)


def test_a_mining_refresh_by_hand() -> None:
    found = planned(MINED, Fleet(workers=2, storage_mb_s=8.0), images=60_000)
    share = 30_000
    expected = {
        "refresh_embed_s": max(share / 400, 60_000 * 1000 / 8e6, share * 3.5e-3 / 8),
        "refresh_write_s": share / 1e5,
        "refresh_publish_s": 60_000 / 2e5,
        "refresh_open_s": 2 * 60_000 * 256 / 8e6,
        "refresh_search_s": 60_000**2 / 2 / 1e8,
    }
    for name, value in expected.items():
        assert found.figures[name] == pytest.approx(value), name
    assert found.figures["refresh_s"] == pytest.approx(sum(expected.values()))
    assert found.figures["epoch_s"] == pytest.approx(
        found.figures["steps"] * found.figures["step_s"] + sum(expected.values())
    )
    twice = planned([*MINED, "mining.refresh_steps=455"], Fleet(workers=2, storage_mb_s=8.0), images=60_000)
    assert twice.figures["refreshes"] == 2  # of 910 steps of 66 images


def test_searching_grows_with_the_square_and_is_named() -> None:
    slow = dataclasses.replace(RATES, mining=Rate(per_s=1e6))
    small, large = (planned(MINED, Fleet(), images=n, rates=slow) for n in (10_000, 1_000_000))
    assert small.bottleneck == "computing"
    assert large.bottleneck == "refresh: searching"
    assert large.figures["refresh_search_s"] / small.figures["refresh_search_s"] == pytest.approx(1e4)
    # IVF at its rule's sixteenth.
    settings = [*MINED, "index.kind=ivf_pq"]
    ivf = dataclasses.replace(RATES, work=dataclasses.replace(RATES.work, index_kind="ivf_pq"))
    assert planned(settings, Fleet(), images=1_000_000, rates=ivf).figures[
        "refresh_search_s"
    ] == pytest.approx(1e4 / 16)


def test_mining_beside_is_waited_for_only_beyond_the_lag() -> None:
    beside = [*MINED, "mining.run=beside", "mining.actors=2", "mining.cpus=4"]
    late = planned(beside, Fleet(), images=20_000)
    assert late.figures["refresh_wait_s"] == late.figures["refresh_s"]
    step_s = late.figures["step_s"]
    early = planned([*beside, "mining.refresh_lag=10"], Fleet(), images=20_000)
    assert early.figures["refresh_wait_s"] == pytest.approx(late.figures["refresh_s"] - 10 * step_s)
    none = planned([*beside, "mining.refresh_lag=3000"], Fleet(), images=20_000)
    assert none.figures["epoch_s"] == none.figures["steps"] * none.figures["step_s"]


def test_prototypes_are_made_class_by_class() -> None:
    found = planned(PCN, Fleet(workers=4, storage_mb_s=1e6), images=6000, classes=6)
    assert found.figures["refresh_kmeans_s"] == pytest.approx(2 / 6 * 6000 / 2000)  # the busiest has 2 of 6
    assert "refresh_search_s" not in found.figures
    alone = [*PCN, "method.clusters=1", "method.memory=0"]
    assert "refresh_s" not in planned(alone, Fleet()).figures


def test_what_does_not_fit_comes_first() -> None:
    found = planned(MINED, Fleet(processes_per_worker=4), images=20_000_000)
    assert found.bottleneck == "memory"
    assert found.figures["machine_memory_gb"] == pytest.approx(4 * 20e6 * (34 + 256) / 1e9)
    sharded = planned([*MINED, "index.shards=8"], Fleet(), images=20_000_000)
    assert sharded.figures["index_shard_memory_gb"] == pytest.approx(20e6 * 256 / 8e9)


def test_memory_of_a_selection() -> None:
    import tracemalloc

    from cluster.planning.workload import SELECTION_BYTES
    from fsl_dist.data.selection import Selection

    labels = np.repeat(np.arange(100), 1000)
    tracemalloc.start()
    try:
        Selection.from_labels(np.arange(len(labels)), labels)
        peak = tracemalloc.get_traced_memory()[1] / len(labels)
    finally:
        tracemalloc.stop()
    assert peak == pytest.approx(SELECTION_BYTES, rel=0.1)


def test_a_classifier_grows_with_its_classes() -> None:
    few, many = (planned(CE, Fleet(workers=2), classes=classes) for classes in (10, 1010))
    grown = many.figures["gradient_mb"] - few.figures["gradient_mb"]
    assert grown == pytest.approx(4 * (64 + 1) * 1000 / 1e6)


def test_a_figure_says_what_it_rests_on() -> None:
    here = planned(CE, Fleet(processes_per_worker=2))
    assert here.basis["step_s"] == here.basis["epoch_s"] == "measured"
    assert here.basis["steps"] == "counted"
    far = planned([*CE[:-2], "training.batch_size=2048", CE[-1]], Fleet(workers=64))
    assert far.basis["step_s"] == far.basis["epoch_s"] == "extrapolated"
    guess = dataclasses.replace(RATES, train=Rate(per_s=100, source="a talk"))
    assert planned(CE, Fleet(), rates=guess).basis["epoch_s"] == "assumed"
    assert planned(CE, Fleet(), rates=guess).basis["load_s"] == "measured"


def test_every_bottleneck_has_a_way_out() -> None:
    for settings in (CE, MINED, PCN):
        found = planned(settings, Fleet())
        assert set(found.parts) <= set(WAYS_OUT)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_rates_file_comes_back_equal(tmp_path: Path, as_json: bool) -> None:
    path = tmp_path / "rates"
    some = dataclasses.replace(RATES, kmeans=None)
    path.write_text(render_rates(some, as_json=as_json))
    assert read_rates(path) == some


REFUSALS = {
    "load: {per_s: 0}": "load.per_s=0 must be above 0",
    "load: {per_s: .inf}": "load.per_s=inf must be",
    "load: {per_s: fast}": 'load.per_s="fast" must be',
    "load: {per_s: 5, core_ms: -1}": "load.core_ms=-1 must be at least 0",
    "machine: {device: cpu, cores: 0, memory_gb: 1}": "machine.cores=0 must be at least 1",
    "machine: {device: cpu, cores: 1, memory_gb: 0}": "machine.memory_gb=0",
    "machine: {device: tpu, cores: 1, memory_gb: 1}": 'machine.device="tpu" must be',
    "laod: {per_s: 5}": "unknown key laod in",
}


@pytest.mark.parametrize("line", REFUSALS)
def test_a_bad_rates_file_is_one_line(tmp_path: Path, line: str) -> None:
    from index.base.settings import merge, parse_yaml

    path = tmp_path / "rates.yaml"
    whole = parse_yaml(render_rates(RATES), "rates")
    path.write_text(json.dumps(merge(whole, parse_yaml(line, "line"))).replace("Infinity", ".inf"))
    with pytest.raises(ConfigError) as error:
        read_rates(path)
    assert REFUSALS[line] in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rate_that_is_missing_says_how_to_measure_it() -> None:
    without = dataclasses.replace(RATES, reduce=None, mining=None, read=None)
    with pytest.raises(RequestError, match=r"no reduce.*bench rates.*--network-gbit"):
        planned(CE, Fleet(workers=2), rates=without)
    with pytest.raises(RequestError, match=r"no read.*--storage-mb-s"):
        planned(CE, Fleet(), rates=without)
    with pytest.raises(RequestError, match=r"rates.yaml has no mining.*bench rates"):
        planned(MINED, Fleet(storage_mb_s=5), rates=without)
    planned(CE, Fleet(storage_mb_s=5), rates=without)  # needs none of them


def test_rates_of_something_else_are_refused() -> None:
    for settings, word in (
        (["backbone.name=resnet18"], "backbone.name=resnet18"),
        (["data.image_size=20"], "data.image_size=20"),
        (["training.precision=bf16"], "training.precision=bf16"),
        (["backbone.embedding_dim=32"], "backbone.embedding_dim=32"),
    ):
        kept = [setting for setting in CE if setting.split("=")[0] not in word]
        with pytest.raises(RequestError, match=word):
            planned([*kept, *settings], Fleet())
    with pytest.raises(RequestError, match=r"index\.kind=hnsw"):
        planned([*MINED, "index.kind=hnsw"], Fleet())
    with pytest.raises(RequestError, match="plans for cuda"):
        planned(CE, Fleet(gpus_per_worker=1))
    gpu = dataclasses.replace(
        RATES,
        machine=dataclasses.replace(RATES.machine, device="cuda"),
        work=dataclasses.replace(RATES.work, precision="bf16"),
    )
    with pytest.raises(RequestError, match=r"mining\.gpus=0"):
        planned([*MINED, "mining.run=beside"], Fleet(gpus_per_worker=1), rates=gpu)
    assert planned(CE, Fleet(workers=2, gpus_per_worker=4), rates=gpu).figures["processes"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], "workers=0 must be at least 1"),
        (["--gpus-per-worker", "-1"], "gpus_per_worker=-1 must be at least 0"),
        (
            ["--gpus-per-worker", "1", "--processes-per-worker", "2"],
            "processes_per_worker=2 with gpus_per_worker=1",
        ),
        (["--network-gbit", "0"], "network_gbit=0.0 must be above 0"),
        (["--storage-mb-s", "nan"], "storage_mb_s=nan must be a finite number"),
        (["--images", "5"], "--images=5 and --classes=None go together"),
        (["--images", "1", "--classes", "1"], "--images=1 must be at least 2"),
        (["--images", "5", "--classes", "6"], "--classes=6 is above --images=5"),
        ([], "data.dataset is empty"),
        (["episode.n_wya=3"], "episode.n_way"),
    ],
)
def test_bad_requests_are_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(render_rates(RATES))
    error = CliRunner().invoke(plan, ["--rates", str(path), *CE, *arguments]).exception
    assert isinstance(error, FslDistError), error
    assert words in str(error)
    assert "\n" not in str(error)


def test_the_verb_prints_a_table_and_json(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(render_rates(RATES))
    asked = ["--rates", str(path), "--workers", "2", "--images", "6400", "--classes", "10", *CE]
    text = CliRunner().invoke(plan, asked).stdout
    assert "2 machines on the CPU, 2 training processes; 6,400 images of 10 classes" in text
    assert "first bottleneck: computing" in text
    found = json.loads(CliRunner().invoke(plan, [*asked, "--json"]).stdout)
    assert found["figures"]["steps"] == 100
    assert found["basis"].keys() == found["figures"].keys()
    assert found["way_out"] == WAYS_OUT[found["bottleneck"]]


def test_a_data_set_is_counted(tmp_path: Path, digits: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(render_rates(RATES))
    asked = ["--rates", str(path), *CE, f"data.dataset={digits}", "training.patience=0", "--json"]
    found = json.loads(CliRunner().invoke(plan, asked).stdout)
    assert (found["images"], found["classes"]) == (120, 10)
