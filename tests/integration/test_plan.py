"""`bench rates` on the digits, and a plan from what it measured: real network, loader, index and processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import GREY_16_PX, Cli, cli_of

from cluster.planning.machine_rates import take_classes
from cluster.planning.rates import read_rates
from fsl_dist.data.selection import Selection
from fsl_dist.errors import RequestError

pytestmark = pytest.mark.integration

SMALL = [
    *GREY_16_PX,
    "data.flip=false",
    "backbone.name=conv4",
    "backbone.width=8",
    "training.patience=0",
]
PCN = [
    "method.kind=pcn",
    "method.clusters=2",
    "episode.n_way=5",
    "episode.k_shot=3",
    "episode.n_query=2",
    "episode.per_step=2",
    "episode.per_epoch=6",
]


cli = pytest.fixture(cli_of)


def test_rates_are_measured_and_a_plan_reads_them(cli: Cli, digits: Path, tmp_path: Path) -> None:
    settings = [f"data.dataset={digits}", *SMALL, *PCN]
    out = tmp_path / "rates.yaml"
    code, printed, err = cli("bench", "rates", "--out", out, "--json", *settings)
    assert code == 0, err
    found = json.loads(printed)["rates"]
    rates = read_rates(out)
    assert rates.work.gradient_bytes == 4 * _parameters_of_conv4(width=8)
    assert (rates.work.step_images, rates.work.classes, rates.work.embedding_dim) == (50, 10, 8)
    assert 50 < rates.work.image_bytes < 500  # an 8 px PNG
    for name in (
        "load",
        "train",
        "embed",
        "kmeans",
        "index_write",
        "index_publish",
        "mining",
        "reduce",
        "read",
    ):
        assert found[name]["per_s"] > 0, name
        assert getattr(rates, name).is_measured
    # A pass with gradient and optimizer costs more than one without.
    assert rates.train is not None
    assert rates.embed is not None
    assert rates.train.core_ms > rates.embed.core_ms
    code, printed, err = cli("plan", "--rates", out, "--processes-per-worker", "2", "--json", *settings)
    assert code == 0, err
    planned = json.loads(printed)
    assert (planned["images"], planned["figures"]["steps"], planned["figures"]["busy_processes"]) == (
        120,
        3,
        2,
    )
    assert planned["figures"]["epoch_s"] > 0
    assert planned["basis"]["epoch_s"] == "measured"


def test_a_search_that_cannot_be_planned_is_not_measured(
    cli: Cli, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [f"data.dataset={digits}", *SMALL, "method.kind=deep_knn", "mining.source=dataset"]
    out = tmp_path / "rates.json"
    settings += ["training.batch_size=33", "index.kind=hnsw", "mining.neighbours=decoded"]
    settings += ["method.k_same=5", "method.m_other=5"]
    code, _, err = cli("bench", "rates", "--out", out, *settings)
    assert code == 0, err
    assert "the search is not measured: index.kind=hnsw" in caplog.text
    assert read_rates(out).mining is None
    assert read_rates(out).kmeans is None
    code, _, err = cli("plan", "--rates", out, *settings)
    assert (code, "index.kind=hnsw" in err) == (2, True)


def test_what_cannot_be_measured_is_one_line(cli: Cli, digits: Path, tmp_path: Path) -> None:
    settings = [f"data.dataset={digits}", *SMALL, *PCN]
    code, out, err = cli("bench", "rates", "--out", tmp_path / "none" / "rates.yaml", *settings)
    assert (code, out, "does not exist" in err) == (2, "", True)
    code, out, err = cli("bench", "rates", "--out", tmp_path / "rates.yaml", *SMALL)
    assert (code, out, "data.dataset is empty" in err) == (2, "", True)
    settings = [setting.replace("n_way=5", "n_way=11") for setting in settings]
    code, _, err = cli("bench", "rates", "--out", tmp_path / "rates.yaml", *settings)
    assert (code, "episode.n_way=11" in err) == (2, True)
    assert not (tmp_path / "rates.yaml").exists()


def test_some_classes_stand_for_all() -> None:
    counts = np.array([3000, 5, 40, 900, 1, 100_000])
    whole = Selection.from_labels(np.arange(counts.sum()), np.repeat(np.arange(6), counts))
    some = take_classes(whole, needed=4, least=5)
    assert 4 not in some.labels  # too small for an episode
    assert some.num_classes >= 4
    assert some.counts.max() <= 20_000
    assert some.counts.min() >= 5
    assert np.isin(some.ids, whole.ids).all()
    with pytest.raises(RequestError, match=r"no class has the 200000 .* the largest has 100000 \("):
        take_classes(whole, needed=4, least=200_000)


def _parameters_of_conv4(width: int) -> int:
    """Four blocks of a 3 × 3 convolution and batch norm, of a grey image; counted by hand."""
    convolutions = 9 * width + width + 3 * (9 * width * width + width)
    return convolutions + 4 * 2 * width
