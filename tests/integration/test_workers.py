"""One worker or two, chunks or none, the same training: real processes, gloo between them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_worker
from commands import GREY_16_PX

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.methods.mining.neighbour_table import NeighbourTable
from fsl_dist.training.checkpoint import CheckpointFolder, read_checkpoint
from fsl_dist.training.runlog import read_metrics
from index import open_index

pytestmark = pytest.mark.integration

WORKER = Path(__file__).parents[1] / "helpers" / "train_worker.py"

NETWORK = [
    *GREY_16_PX,
    "data.flip=false",
    "data.decoder=torchvision",
    "backbone.name=conv4",
    "backbone.width=16",
    "evaluation.batch_size=32",
]
UNVALIDATED = ["training.patience=0"]
PCN = [
    "method.kind=pcn",
    "method.clusters=3",
    "method.temperature=1.0",
    "evaluation.delta_tau=[0]",
    "episode.n_way=5",
    "episode.k_shot=4",
    "episode.n_query=3",
    "episode.per_epoch=6",
]
SCATTER = [
    "method.kind=scatter",
    "method.scatter_weight=0.4",
    "episode.n_way=5",
    "episode.k_shot=4",
    "episode.n_query=3",
    "episode.per_epoch=6",
]
DEEP_KNN = ["method.kind=deep_knn", "training.batch_size=66"]
NEAREST = ["method.k_same=5", "method.m_other=5"]
HINGE = [*NEAREST, "method.loss=hinge", "method.normalise=false", "method.margin=1.0"]
GROUPS = ["backbone.batch_norm_group=16"]
CHAI = ["method.kind=chai", "method.triplets=90", "training.batch_size=30", "backbone.map_head=24"]
MINED = [*DEEP_KNN, *HINGE, "mining.source=dataset", "mining.neighbours=decoded"]
IN_MEMORY = [*DEEP_KNN, "mining.source=dataset"]
CLUSTERED = ["index.kind=ivf_flat", "index.nlist=3", "index.nprobe=2"]
REFRESHED = ["mining.refresh_steps=4", "training.images=900", "training.lr=1e-2", "training.optimizer=sgd"]

# An odd batch, one of whose images has no partner; every part of the augmentation.
MIXED = [
    "method.kind=cross_entropy",
    "method.balance=sampling",
    "method.mixup=0.4",
    "method.cutmix=1",
    "training.batch_size=33",
    "data.crop_scale=[0.5,1]",
    "data.rotation=20",
    "data.randaugment=2",
    "data.erasing=0.5",
]

STEPS = {
    "pcn": [*PCN, "episode.per_step=2"],
    "pcn, three episodes": [*PCN, "episode.per_step=3"],
    "pcn, fewer episodes than workers": [*PCN, "episode.per_step=1"],
    "pcn, one episode over all workers": [*PCN, "episode.scope=global", "episode.per_step=1"],
    "pcn, two episodes over all workers": [*PCN, "episode.scope=global", "episode.per_step=2"],
    "scatter, three episodes": [*SCATTER, "episode.per_step=3"],
    "scatter, two episodes over all workers": [*SCATTER, "episode.scope=global", "episode.per_step=2"],
    "deep kNN, batch": [*DEEP_KNN, *GROUPS],
    "deep kNN, stratified batch": [*DEEP_KNN, *HINGE, *GROUPS, "method.classes_per_batch=9"],
    "deep kNN, memory": [*IN_MEMORY, *GROUPS],
    "deep kNN, memory, nearest": [*IN_MEMORY, *NEAREST, *GROUPS],
    "deep kNN, memory, nearest by clusters": [*IN_MEMORY, *NEAREST, *GROUPS, *CLUSTERED],
    "deep kNN, memory, hinge": [*IN_MEMORY, *HINGE, *GROUPS],
    "deep kNN, memory and cross entropy": [*IN_MEMORY, *GROUPS, "method.cross_entropy_weight=0.5"],
    "deep kNN, dataset": [*MINED, *GROUPS],
    "deep kNN, dataset, damaged images": [*MINED, *GROUPS],
    "deep kNN, dataset, frozen batch norm": [*MINED, "backbone.batch_norm=frozen"],
    "deep kNN, batch, frozen layers": [*DEEP_KNN, *GROUPS, "backbone.freeze=2", "backbone.layer_decay=0.5"],
    # One group of images, so the second worker has none and only takes part.
    "deep kNN, batch smaller than its group": [*DEEP_KNN, "backbone.batch_norm_group=96"],
    "batch hard": ["method.kind=batch_hard", "training.batch_size=66", *GROUPS],
    "few-shot NCA": ["method.kind=few_shot_nca", "training.batch_size=66", *GROUPS],
    "chai": [*CHAI, *GROUPS],
    "chai, joint": [*CHAI, *GROUPS, "method.sampling=joint", "method.kmeans_groups=5"],
    "cross entropy, weighted": [
        "method.kind=cross_entropy",
        "method.balance=weights",
        "training.batch_size=50",
        "backbone.batch_norm_group=10",
    ],
    "cross entropy, mixed": [*MIXED, "backbone.batch_norm_group=10"],
    "cross entropy, mixed, frozen batch norm": [*MIXED, "backbone.batch_norm=frozen"],
}
# Each is taken plain and in chunks. On two workers, chunks of 28 cut the deep kNN batches (groups of 14 and 13, two
# for one worker and three for the other) into one chunk here and two there.
GHOST = ["backbone.batch_norm=ghost", "backbone.batch_norm_group=9"]
CHUNKED = {
    "pcn": (18, [*PCN, *GHOST, "episode.per_step=2"]),
    "pcn, frozen batch norm": (8, [*PCN, "backbone.batch_norm=frozen", "episode.per_step=2"]),
    "pcn, fewer episodes than workers": (9, [*PCN, *GHOST, "episode.per_step=1"]),
    "pcn, two episodes over all workers": (9, [*PCN, *GHOST, "episode.scope=global", "episode.per_step=2"]),
    "scatter": (18, [*SCATTER, *GHOST, "episode.per_step=2"]),
    "scatter, one episode over all workers": (
        9,
        [*SCATTER, *GHOST, "episode.scope=global", "episode.per_step=1"],
    ),
    "deep kNN, batch": (28, [*DEEP_KNN, *GROUPS]),
    "deep kNN, dataset": (16, [*MINED, *GROUPS]),
    "deep kNN, memory": (16, [*IN_MEMORY, *GROUPS]),
    "chai": (16, [*CHAI, *GROUPS]),
    "cross entropy": (
        10,
        ["method.kind=cross_entropy", "training.batch_size=50", "backbone.batch_norm_group=10"],
    ),
    "cross entropy, mixed": (10, [*MIXED, "backbone.batch_norm_group=9"]),
    "cross entropy, mixed, frozen batch norm": (7, [*MIXED, "backbone.batch_norm=frozen"]),
}
MEMORY = {"means", "mask", "blind_groups", "memory"}
RUNS = {
    "pcn": [*PCN, "episode.per_step=2", "backbone.batch_norm=frozen", "training.epochs=2"],
    "scatter": [
        *SCATTER,
        "episode.per_step=2",
        "backbone.batch_norm=frozen",
        "training.epochs=2",
        "training.patience=2",
        "data.holdout_fraction=0.4",
    ],
    "mined": [*MINED, "training.images=66"],
    # Three groups of images per step for two workers, then one: what is mined later rests on running statistics.
    "mined anew, unequal groups": [*MINED, *REFRESHED, "backbone.batch_norm_group=22"],
    "mined anew, one group": [*MINED, *REFRESHED, "backbone.batch_norm_group=66"],
    "memory": [*IN_MEMORY, *REFRESHED, "backbone.batch_norm=frozen", "mining.refresh_lag=2"],
    "counted": [*DEEP_KNN, *GROUPS, "training.images=66", "training.log_train_knn=true"],
    "deep kNN": [*DEEP_KNN, *GROUPS, "training.epochs=2"],
    "averaged": [*DEEP_KNN, *GROUPS, "training.epochs=4", "training.clip_norm=0.05", "training.ema=0.9"],
    "deep kNN, chunked": [*DEEP_KNN, *GROUPS, "training.epochs=2", "training.chunk_size=28"],
}


# Batch norm is frozen, so that one image's NaN stays its own.
POISONED = {
    name: [*settings, "backbone.batch_norm=frozen", "training.epochs=20"]
    for name, settings in {
        "pcn": PCN,  # embeds all images before its first step
        "scatter": [*SCATTER, "episode.per_step=2"],
        "deep kNN": DEEP_KNN,
        "deep kNN, chunked": [*DEEP_KNN, "training.chunk_size=20"],
    }.items()
}


def _all_cases() -> dict[str, tuple[str, str, list[str]]]:
    """Name → (task, dtype, settings)."""
    cases = {f"step {name}": ("step", "float64", settings) for name, settings in STEPS.items()}
    cases |= {f"train {name}": ("train", "float32", settings) for name, settings in RUNS.items()}
    cases |= {
        f"poison {name}": ("poison", "float32", [*settings, "training.max_bad_steps=1"])
        for name, settings in POISONED.items()
    }
    for name, (chunk_size, settings) in CHUNKED.items():
        for dtype in ("float32", "float64"):
            cases[f"plain {dtype} {name}"] = ("step", dtype, settings)
            cases[f"chunked {dtype} {name}"] = (
                "step",
                dtype,
                [*settings, f"training.chunk_size={chunk_size}"],
            )
    return cases


@pytest.fixture(scope="module")
def worlds(digits: Path, damaged_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folder of results by number of workers; every case run by one process and by two, all three at once."""
    folders, workers = {}, []
    for world_size in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{world_size}")
        cases = {}
        for name, (task, dtype, settings) in _all_cases().items():
            place = place_of({world_size: folder}, world_size, name)
            cases[name] = {
                "task": task,
                "dtype": dtype,
                "out": f"{place}.npz",
                "settings": [
                    *NETWORK,
                    *([] if any(key.startswith("training.patience") for key in settings) else UNVALIDATED),
                    *settings,
                    f"data.dataset={damaged_digits if 'damaged' in name else digits}",
                    f"run.dir={place}",
                    f"workers.num={world_size}",
                ],
            }
        (folder / "cases.json").write_text(json.dumps(cases))
        workers += [
            subprocess.Popen(
                [
                    sys.executable,
                    str(WORKER),
                    str(folder / "cases.json"),
                    str(rank),
                    str(world_size),
                    str(folder / "rendezvous"),
                ],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        folders[world_size] = folder
    for worker in workers:
        _, errors = worker.communicate(timeout=280)
        assert worker.returncode == 0, errors[-3000:]
    return folders


def place_of(worlds: dict[int, Path], world_size: int, name: str) -> Path:
    return worlds[world_size] / name.replace(" ", "_").replace(",", "")


def step_of(worlds: dict[int, Path], world_size: int, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(f"{place_of(worlds, world_size, name)}.npz"))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_over_two_workers_is_the_plain_step(name: str, worlds: dict[int, Path]) -> None:
    one, two = (step_of(worlds, world_size, f"step {name}") for world_size in (1, 2))
    assert one["ids"].tolist() == two["ids"].tolist()
    assert np.linalg.norm(one["gradient"]) > 0
    relative = np.linalg.norm(one["gradient"] - two["gradient"]) / np.linalg.norm(one["gradient"])
    assert relative <= 1e-9
    assert abs(one["loss"] - two["loss"]) <= 1e-6 * abs(one["loss"])
    # Whoever forwarded how many of the images.
    np.testing.assert_allclose(one["statistics"], two["statistics"], rtol=1e-9, atol=1e-9)
    for state in MEMORY & set(one):
        np.testing.assert_allclose(one[state], two[state], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-9), ("float32", 1e-5)])
@pytest.mark.parametrize("name", CHUNKED)
def test_a_step_in_chunks_is_the_plain_step(
    name: str, dtype: str, limit: float, world_size: int, worlds: dict[int, Path]
) -> None:
    chunked = step_of(worlds, world_size, f"chunked {dtype} {name}")
    plain = step_of(worlds, 1, f"plain {dtype} {name}")
    assert chunked["calls"].sum() >= 2 * len(chunked["calls"])  # else nothing was cached
    assert plain["calls"].tolist() == [1] * len(plain["calls"])
    assert chunked["ids"].tolist() == plain["ids"].tolist()
    assert np.linalg.norm(plain["gradient"]) > 0
    relative = np.linalg.norm(plain["gradient"] - chunked["gradient"]) / np.linalg.norm(plain["gradient"])
    assert relative <= limit
    assert abs(plain["loss"] - chunked["loss"]) <= 1e-5 * abs(plain["loss"])
    np.testing.assert_allclose(plain["statistics"], chunked["statistics"], rtol=limit, atol=limit)
    for state in MEMORY & set(plain):
        np.testing.assert_allclose(plain[state], chunked[state], rtol=1e-5, atol=1e-5)


def test_damaged_images_are_learned_from_by_their_stand_ins(worlds: dict[int, Path]) -> None:
    """Were the damage not met, the case above would prove nothing."""
    sound, damaged = (
        step_of(worlds, 1, f"step {name}")
        for name in ("deep kNN, dataset", "deep kNN, dataset, damaged images")
    )
    assert np.linalg.norm(sound["gradient"] - damaged["gradient"]) > 1e-6 * np.linalg.norm(sound["gradient"])


def test_training_on_two_workers_learns_as_on_one(worlds: dict[int, Path]) -> None:
    curves = [
        [line["train/loss"] for line in read_metrics(place_of(worlds, world_size, "train pcn"))]
        for world_size in (1, 2)
    ]
    assert len(curves[0]) == 6
    # float32 over six steps and two k-means: rounding grows, nothing else differs.
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-3)


def test_two_workers_stop_by_the_clusters_of_one(worlds: dict[int, Path]) -> None:
    found = [
        [line["eval/kmeans/ca"] for line in read_metrics(place_of(worlds, world_size, "train scatter"))
         if "eval/kmeans/ca" in line]
        for world_size in (1, 2)
    ]  # fmt: skip
    assert len(found[0]) == 1 + 2  # the start, then each epoch
    # Of 50 images, rounding may move one.
    assert found[0] == pytest.approx(found[1], abs=1.01 / 50)


def test_training_in_chunks_learns_as_without(worlds: dict[int, Path]) -> None:
    """Several steps: DDP rebuilds its buckets in the second one, for any number of chunks."""
    runs = [place_of(worlds, 1, "train deep kNN")]
    runs += [place_of(worlds, world_size, "train deep kNN, chunked") for world_size in (1, 2)]
    plain, *chunked = ([line["train/loss"] for line in read_metrics(run)] for run in runs)
    assert len(plain) == 4
    for curve in chunked:
        np.testing.assert_allclose(plain, curve, rtol=1e-3)


def test_two_workers_mine_what_brute_force_finds(worlds: dict[int, Path]) -> None:
    run = place_of(worlds, 2, "train mined")
    index = open_index(run / "index" / "train")
    assert len(index.manifest.shard_starts) == 2
    (folder,) = (run / "mining").glob("step-00000000-*")
    same, other = NeighbourTable.open(folder, 5, 0).rows(np.arange(index.num_vectors))
    vectors = index.vectors(0, index.num_vectors).astype(np.float64)
    row_of_id = {int(sample): row for row, sample in enumerate(index.ids)}
    for row in range(index.num_vectors):
        squared = ((vectors - vectors[row]) ** 2).sum(axis=1)
        is_same = index.labels == index.labels[row]
        for found, allowed in (
            (same[row], is_same & (np.arange(len(squared)) != row)),
            (other[row], ~is_same),
        ):
            rows = [row_of_id[int(sample)] for sample in found]
            assert allowed[rows].all()
            # Up to ties: the distances are those of the best five.
            np.testing.assert_allclose(squared[rows], np.sort(squared[allowed])[:5], rtol=1e-6)


def test_two_workers_remember_what_one_remembers(worlds: dict[int, Path]) -> None:
    one, two = (read_metrics(place_of(worlds, world_size, "train memory")) for world_size in (1, 2))
    assert sum("mining/refreshed_at_step" in line for line in one) >= 3
    np.testing.assert_allclose(
        [line["train/loss"] for line in two], [line["train/loss"] for line in one], rtol=1e-3
    )


@pytest.mark.parametrize("groups", ["unequal groups", "one group"])
def test_two_workers_mine_anew_what_one_mines(worlds: dict[int, Path], groups: str) -> None:
    one, two = (
        read_metrics(place_of(worlds, world_size, f"train mined anew, {groups}")) for world_size in (1, 2)
    )
    assert sum("mining/refreshed_at_step" in line for line in one) >= 3
    # The images of every step, so the same tables. Losses up to float32's rounding, which grows: every image is an anchor, and
    # its neighbours are determined again at each step.
    assert [line["train/images_seen"] for line in two] == [line["train/images_seen"] for line in one]
    np.testing.assert_allclose(
        [line["train/loss"] for line in two][:12], [line["train/loss"] for line in one][:12], rtol=5e-3
    )


def test_two_workers_count_the_training_accuracy_of_one(worlds: dict[int, Path]) -> None:
    found = [
        [line["eval/knn/train_acc@5"] for line in read_metrics(place_of(worlds, world_size, "train counted"))
         if "eval/knn/train_acc@5" in line]
        for world_size in (1, 2)
    ]  # fmt: skip
    assert len(found[0]) == 1
    # Of 120 images, one neighbour's rounding may move one.
    assert found[0] == pytest.approx(found[1], abs=1.01 / 120)


def test_two_workers_clip_and_average_as_one(worlds: dict[int, Path]) -> None:
    runs = [place_of(worlds, world_size, "train averaged") for world_size in (1, 2)]
    one, two = ([line for line in read_metrics(run) if "train/loss" in line] for run in runs)
    assert len(one) == 8
    assert min(line["train/grad_norm"] for line in one) > 0.05  # else nothing was clipped
    for name, limit in (("train/grad_norm", 1e-2), ("train/loss", 1e-3), ("train/lr", 0.0)):
        np.testing.assert_allclose(
            [line[name] for line in two], [line[name] for line in one], rtol=limit, err_msg=name
        )
    averages = []
    for run in runs:
        last = CheckpointFolder(run, keep=1, owner=None).latest()
        assert last is not None
        checkpoint = read_checkpoint(last, torch.device("cpu"))
        averages.append(checkpoint.average)
        assert any(not torch.equal(value, checkpoint.network[name]) for name, value in averages[-1].items())
    for name, value in averages[0].items():
        # num_batches_tracked counts a worker's own calls. Adam's step is up to lr whatever the size of a gradient.
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(averages[1][name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", POISONED)
def test_all_workers_stop_at_the_same_bad_image(name: str, worlds: dict[int, Path], digits: Path) -> None:
    """Whichever worker forwarded it."""
    sample = Catalogue.open(digits).describe_sample(train_worker.POISONED)
    said = {
        world_size: [
            path.read_text() if path.is_file() else ""
            for rank in range(world_size)
            for path in [Path(f"{place_of(worlds, world_size, f'poison {name}')}.{rank}")]
        ]
        for world_size in (1, 2)
    }
    assert len({*said[1], *said[2]}) == 1
    (text,) = said[1]
    if name == "pcn":
        assert text.startswith(
            f"the network of step-00000000 has diverged: the embedding of {sample} contains numbers "
        ), text
    else:
        kind = "scatter" if name == "scatter" else "deep_knn"
        assert re.match(rf"training diverged at step \d+ of epoch \d+ with method.kind={kind}: ", text)
        assert f": the output for {sample}, row " in text
    assert "training.lr" in text
    assert "\n" not in text
