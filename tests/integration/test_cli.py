"""The command line as a person meets it: one chain from images to scores, and every mistake in one line."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import GREY_16_PX, PROGRAM, Cli, cli_of

from fsl_dist.data.catalogue import Catalogue

pytestmark = pytest.mark.integration

SMALL = [
    *GREY_16_PX,
    "data.flip=false",
    "backbone.name=conv4",
    "backbone.width=8",
]
PCN = [
    "method.kind=pcn",
    "method.clusters=2",
    "method.novel_clusters=2",
    "method.temperature=3.0",
    "episode.n_way=5",
    "episode.k_shot=3",
    "episode.n_query=2",
    "episode.per_step=1",
    "episode.per_epoch=4",
]


cli = pytest.fixture(cli_of)


def refused(answer: tuple[int, str, str], *words: str) -> None:
    """The answer is exit 2 with one line on stderr that holds `words`, and nothing on stdout."""
    code, out, err = answer
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert out == ""
    assert len(lines) == 1
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0]


def test_help_is_instant() -> None:
    seconds = []
    for _ in range(5):
        process = subprocess.Popen([PROGRAM, "--help"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        # Of the processor, since others may use the machine; it waits for nothing.
        seconds.append(used.ru_utime + used.ru_stime)
    assert min(seconds) < 0.3


def test_every_verb_explains_itself_with_an_example(cli: Cli) -> None:
    for verb in (
        "doctor",
        "demo",
        "pack",
        "adopt",
        "resplit",
        "inspect",
        "train",
        "embed",
        "evaluate",
        "baseline",
        "plot tsne",
        "plot retrieval",
        "plot maps",
        "predict",
        "explain",
        "index build",
        "index search",
        "sweep run",
        "submit",
        "job status",
        "job logs",
        "job stop",
        "job list",
        "job enter",
        "bench rates",
        "plan",
    ):
        code, out, _ = cli(*verb.split(), "--help")
        assert code == 0
        assert "Example" in out


def test_doctor_tells_what_is_here(cli: Cli) -> None:
    code, out, _ = cli("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["torch"].startswith("2.")
    assert found["decoder"] in ("dali", "torchvision")


def test_images_to_clusters_of_classes_that_were_not_trained_on(
    cli: Cli, base_novel: Path, tmp_path: Path
) -> None:
    dataset, run = tmp_path / "digits", tmp_path / "run"
    shutil.copytree(base_novel, dataset)
    assert cli("resplit", dataset, "--split", "classes", "--fractions", "0.4,0.3,0.3")[0] == 0
    settings = [*SMALL, f"data.dataset={dataset}", f"run.dir={run}", "training.epochs=2"]
    refused(
        cli("train", *settings, "method.kind=cross_entropy"),
        "training.stop_metric=knn/mcr@5",
        "none of the 3 classes of the val split is among the 4 of train",
        "training.stop_metric=kmeans/ca",
    )
    assert not run.exists()
    episodes = [*(key for key in PCN if key.startswith("episode.") and "n_way" not in key), "episode.n_way=4"]
    code, out, err = cli("train", "--json", *settings, *episodes, "method.kind=scatter")
    assert code == 0, err
    assert json.loads(out)["stop_metric"] == "kmeans/ca"

    code, out, err = cli("evaluate", run, "--json", "evaluation.clustering_runs=3")
    assert code == 0, err
    assert "no training image" not in err
    report = json.loads(out)
    assert report["split"] == "test"
    scores = ("ca", "nmi", "nmi_max", "ami", "ari")
    assert set(report["metrics"]) == {
        f"{name}/{score}" for name in ("kmeans", "spectral") for score in scores
    }
    assert {value["n"] for value in report["metrics"].values()} == {3}
    assert 1 / 3 <= report["metrics"]["kmeans/ca"]["mean"] <= 1
    refused(
        cli("evaluate", run, "--protocol", "spectral", "evaluation.num_clusters=1000"),
        "--protocol spectral with evaluation.num_clusters=1000",
        "72 images of 3 classes",
    )


def test_images_to_scores_with_novel_classes(cli: Cli, base_novel: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*SMALL, *PCN, f"data.dataset={base_novel}", f"run.dir={run}", "training.epochs=2"]
    code, out, err = cli("train", "--json", *settings, "evaluation.draws=3")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["epochs"], summary["steps"]) == (2, 8)
    assert summary["stop_metric"] == "mca/base"
    assert 0 <= summary["start_value"] <= summary["best_value"] <= 1
    assert summary["is_better_than_start"] == (summary["best_value"] > summary["start_value"])

    code, out, err = cli("evaluate", run, "--json", "evaluation.k_p=[1,5]")
    assert code == 0, err
    report = json.loads(out)
    assert set(report) == {"run", "dataset", "split", "metrics", "start"}
    assert report["split"] == "test"
    metrics = report["metrics"]
    assert report["start"].keys() == metrics.keys()
    for group in ("base_novel", "base", "novel"):
        for score in ("mca", "recall@5", "recall@10", "balanced_recall@5", "balanced_recall@10"):
            for delta in ("", ";dtau=-2", ";dtau=3"):
                value = metrics[f"{score}/{group}{delta}"]
                assert value["n"] == 3
                assert 0 <= value["mean"] <= 1
    for k_p in (1, 5):
        assert {f"knn/acc@{k_p}", f"knn/mcr@{k_p}", f"knn/rs@{k_p}"} <= set(metrics)
    # Scores are functions of the seed: a second evaluation repeats them, from embeddings that are kept.
    again = json.loads(cli("evaluate", run, "--json", "evaluation.k_p=[1,5]")[1])
    assert again == report

    code, out, err = cli("embed", run, base_novel, "--out", tmp_path / "features.npy", "--json")
    assert code == 0, err
    features = np.load(tmp_path / "features.npy")
    assert features.dtype == np.float32
    assert list(features.shape) == [json.loads(out)["num_samples"], 8]

    code, out, err = cli("index", "build", run, base_novel, tmp_path / "index", "--json")
    assert code == 0, err
    code, out, err = cli(
        "index", "search", tmp_path / "index", "--queries", tmp_path / "features.npy", "--k", "3",
        "--out", tmp_path / "found.npz", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = np.load(tmp_path / "found.npz")
    # The index holds the train split, whose sample ids come first: each of them finds itself.
    num_train = len(Catalogue.open(base_novel).split_ids("train"))
    assert found["ids"][:num_train, 0].tolist() == list(range(num_train))
    np.testing.assert_allclose(found["distances"][:num_train, 0], 0, atol=1e-6)


def test_frozen_features_train_an_mlp(cli: Cli, base_novel: Path, tmp_path: Path) -> None:
    num_samples = Catalogue.open(base_novel).num_samples
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(num_samples, 12)).astype(np.float32))
    settings = [
        f"data.dataset={base_novel}",
        f"data.features={tmp_path / 'x.npy'}",
        "backbone.name=mlp",
        "backbone.hidden=[16,8]",
        "method.kind=deep_knn",
        "mining.source=dataset",
        "training.batch_size=33",
        "training.epochs=1",
        "training.patience=0",
    ]
    code, out, err = cli("train", "--json", f"run.dir={tmp_path / 'run'}", *settings)
    assert code == 0, err
    assert json.loads(out)["loss"] is not None
    code, out, err = cli("evaluate", tmp_path / "run", "--json")
    assert code == 0, err
    assert set(json.loads(out)["metrics"]) == {"knn/acc@5", "knn/mcr@5", "knn/rs@5"}


def test_a_run_is_not_overwritten_and_resumes(cli: Cli, base_novel: Path, tmp_path: Path) -> None:
    settings = [
        *SMALL,
        *PCN,
        f"data.dataset={base_novel}",
        f"run.dir={tmp_path / 'run'}",
        "training.patience=0",
    ]
    assert cli("train", "--json", *settings, "training.epochs=1")[0] == 0
    refused(cli("train", *settings, "training.epochs=1"), "already contains a run", "--resume")
    refused(
        cli("train", "--resume", *settings, "training.batch_size=5"),
        "training.batch_size=5",
        "another folder starts a new run",
    )
    refused(
        cli("train", "--resume", f"run.dir={tmp_path / 'run'}", "method.clusters=3"),
        "method.clusters=3",
        "the run's 2",
    )
    code, out, err = cli("train", "--resume", "--json", f"run.dir={tmp_path / 'run'}", "training.epochs=3")
    assert code == 0, err
    assert json.loads(out)["steps"] == 12


def test_mistakes_in_the_configuration(cli: Cli, base_novel: Path, tmp_path: Path) -> None:
    here = [*SMALL, f"data.dataset={base_novel}", f"run.dir={tmp_path / 'run'}"]
    refused(cli("train", *here, "episode.n_wya=3"), "episode.n_wya", "episode.n_way")
    refused(cli("train", *here, "method.kind=deep_knn", "method.memory=1"), "method.memory", "pcn")
    refused(cli("train", *here, "training.epochs=true"), "training.epochs", "true")
    refused(cli("train", *here, "training.lr=fast"), "training.lr", "fast")
    refused(cli("train", *here, *PCN[:-4], "episode.k_shot=40"), "episode.k_shot=40", "small_classes=replace")
    refused(cli("train", *here, "method.kind=pcn", "episode.n_way=9", "episode.k_shot=5"), "n_way", "7")
    refused(cli("train", *here, "method.kind=pcn", "method.temperature=1.0"), "delta_tau", "above 0")
    decoded = ["mining.source=dataset", "mining.neighbours=decoded", "method.k_same=5", "method.m_other=5"]
    refused(cli("train", *here, *decoded, "training.batch_size=5"), "batch_size")
    refused(cli("train", *here, *decoded[:2]), "mining.neighbours=decoded", "method.k_same=all")
    refused(cli("train", *here, "method.loss=hinge"), "method.k_same=all", "method.loss=softmax")
    refused(cli("train", *here, "workers.num=2", "workers.launch=process"), "workers.num=2")
    refused(cli("train", *here, "backbone.weights=nowhere.pth"), "nowhere.pth")
    refused(cli("train", *SMALL, "data.dataset=nowhere", f"run.dir={tmp_path / 'run'}"), "nowhere")
    refused(cli("train", *SMALL, f"data.dataset={base_novel}"), "run.dir")
    refused(cli("train", "--config", tmp_path / "none.yaml"), "none.yaml")
    assert not (tmp_path / "run").exists()


def test_mistakes_around_a_run(cli: Cli, base_novel: Path, tmp_path: Path) -> None:
    refused(cli("evaluate", tmp_path), "is not a run folder")
    settings = [*SMALL, f"data.dataset={base_novel}", f"run.dir={tmp_path / 'run'}", "training.epochs=0"]
    assert cli("train", *settings)[0] == 0
    refused(cli("evaluate", tmp_path / "run", "training.lr=1"), "training.lr", "evaluation.")
    refused(cli("evaluate", tmp_path / "run", "--protocol", "prototypes"), "prototypes", "deep_knn")
    refused(cli("embed", tmp_path / "run", tmp_path / "nowhere"), "nowhere")
    code, _, err = cli("evaluate", tmp_path / "run", "--protocol", "magic")
    assert code == 2
    assert "Traceback" not in err


def test_an_error_before_anything_is_written_by_two_workers_too(
    cli: Cli, base_novel: Path, tmp_path: Path
) -> None:
    answer = cli(
        "train", *SMALL, f"data.dataset={base_novel}", f"run.dir={tmp_path / 'run'}", "workers.num=2",
        "method.kind=pcn", "episode.n_way=9", "episode.k_shot=5",
    )  # fmt: skip
    refused(answer, "n_way")
    assert not (tmp_path / "run").exists()
