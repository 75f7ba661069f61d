"""CHAI as a run: groups that fit, triplets that a resumed run draws again, the map head and its learning rate."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.methods.chai import draw_validation, group_by_kmeans
from fsl_dist.training.launch import check_run, train_run
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import find_checkpoint, open_trained


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as 5 diseases of 2 groups, 14 training and 6 test images of each; some lack a group, half a blind one."""
    from PIL import Image
    from sklearn.datasets import load_digits

    from fsl_dist.data.ingest.listing import TableColumns
    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import pack

    scans = load_digits()
    source = tmp_path_factory.mktemp("digits")
    rows = ["file,disease,group,blind,scan,divided,split"]
    for digit in range(10):
        for position, member in enumerate(np.flatnonzero(scans.target == digit)[:20]):
            path = source / f"{member}.png"
            Image.fromarray((scans.images[member] * (255 / 16)).astype(np.uint8)).save(path)
            group = "" if position % 7 == 6 else f"g{digit}"
            blind = "" if position % 2 else f"b{(digit + position) % 3}"
            # Two neighbouring images are of one scan, and groups g0 … g4 have two diseases each.
            rows.append(
                f"{path.name},d{digit // 2},{group},{blind},s{digit}-{position // 2},g{digit % 5},"
                f"{'train' if position < 14 else 'test'}"
            )
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("packed")
    for name, group, blind in (
        ("full", "group", "blind"),
        ("without", "", ""),
        ("divided", "divided", ""),
    ):
        columns = TableColumns(
            table=str(source / "labels.csv"),
            label="disease",
            group=group,
            blind_group=blind,
            unit="scan",
            split="split",
        )
        pack(source, out / name, PackOptions(columns=columns))
    return out


def settings(dataset: Path, run: Path, *more: str) -> RunConfig:
    """A small run; `more` replaces settings of the same key."""
    own = [
        f"data.dataset={dataset}",
        f"run.dir={run}",
        "data.channels=1",
        "data.resize=exact",
        "data.resize_size=16",
        "data.image_size=16",
        "data.mean=[0.5]",
        "data.std=[0.5]",
        "data.flip=false",
        "data.decoder=torchvision",
        "backbone.name=conv4",
        "backbone.width=8",
        "backbone.map_head=12",
        "method.kind=chai",
        "method.triplets=60",
        "method.validation_triplets=50",
        "training.batch_size=16",
        "training.optimizer=sgd",
        "training.lr=1e-2",
        "training.epochs=1",
        "training.patience=0",
    ]
    chosen = dict(setting.split("=", 1) for setting in (*own, *more))
    return load_config(None, [f"{key}={value}" for key, value in chosen.items()])


def method_of(config: RunConfig):
    catalogue = Catalogue.open(config.data.dataset)
    splits = split_run(catalogue, config)
    return config.build_method(catalogue, splits.train, torch.device("cpu")), catalogue, splits


@pytest.mark.parametrize("sampling", ["disease", "hierarchical", "non_hierarchical", "joint"])
def test_an_epoch_is_the_triplets_of_its_sampling(pairs: Path, tmp_path: Path, sampling: str) -> None:
    config = settings(pairs / "full", tmp_path, f"method.sampling={sampling}")
    method, catalogue, splits = method_of(config)
    seen = []
    assert method.num_steps() == 4
    for step in range(4):
        (batch,) = method.batches(0, step)
        assert batch.labels.tolist() == catalogue.labels[batch.ids].tolist()
        seen += batch.ids[batch.payload].tolist()
    assert sorted(seen) == sorted(method.triplets.tolist())
    a, b, c = np.array(seen).T
    assert np.isin(np.stack([a, b, c]), splits.train.ids).all()
    labels, groups, blind = catalogue.labels, catalogue.groups, catalogue.blind_groups
    by_class = (labels[a] == labels[b]) & (labels[a] != labels[c])
    match sampling:
        case "disease":
            assert by_class.all()
        case "hierarchical":
            assert (by_class & (groups[a] == groups[b]) & (groups[a] >= 0)).all()
        case "non_hierarchical":
            assert ((groups[a] == groups[b]) & (groups[a] != groups[c]) & (groups[c] >= 0)).all()
            assert (labels[a] == labels[c]).any()
        case "joint":
            by_blind = (blind[a] == blind[b]) & (blind[a] != blind[c]) & (np.minimum(blind[a], blind[c]) >= 0)
            assert (by_class | by_blind).all()
            assert 30 <= by_class.sum() < 60 > by_blind.sum() >= 30


def test_half_of_the_images_are_the_same_half_for_both_samplings(pairs: Path, tmp_path: Path) -> None:
    halves = [
        method_of(settings(pairs / "full", tmp_path, f"method.sampling={sampling}", "method.image_fraction=0.5", *more))[0]
        for sampling, more in (("hierarchical", ()), ("non_hierarchical", ()), ("hierarchical", ("run.seed=1",)))
    ]  # fmt: skip
    assert len(halves[0].ids) == 70
    assert halves[0].ids.tolist() == halves[1].ids.tolist() != halves[2].ids.tolist()
    assert np.isin(halves[0].triplets, halves[0].ids).all()


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        (
            "without",
            ["method.sampling=hierarchical"],
            r"method\.sampling=hierarchical needs similarity groups; the 140 training images of data\.dataset=\S+ have "
            r"5 classes and no groups \(resplit with group_column",
        ),
        (
            "divided",
            ["method.sampling=hierarchical"],
            r"are inside one class each; in data\.dataset=\S+ group 'g0' has images of class 'd0' and of 'd2'",
        ),
        (
            "full",
            ["method.sampling=hierarchical", "method.image_fraction=0.01"],
            r"finds no triplet among the 1 training images of data\.dataset=\S+ that method\.image_fraction=0\.01 leaves",
        ),
    ],
)
def test_groups_that_do_not_serve_are_told_before_training(
    pairs: Path, tmp_path: Path, name: str, more: list[str], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        check_run(settings(pairs / name, tmp_path / "run", *more))
    assert "\n" not in str(refused.value)
    assert "method.kind=chai" in str(refused.value)


def test_groups_of_two_classes_serve_non_hierarchical_sampling(pairs: Path, tmp_path: Path) -> None:
    assert check_run(settings(pairs / "divided", tmp_path, "method.sampling=non_hierarchical")) == 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["method.margin=0"], r"method\.margin=0\.?0? must be above 0"),
        (["method.triplets=0"], r"method\.triplets=0 must be at least 1"),
        (["method.image_fraction=1.5"], r"method\.image_fraction=1\.5 must be above 0 and at most 1"),
        (["method.kmeans_groups=1"], r"method\.kmeans_groups=1 must be at least 2"),
        (["backbone.name=vit_b_16"], r"map_head=12 needs feature maps; backbone\.name=vit_b_16 has none"),
        (["backbone.name=mlp"], r"map_head=12 needs feature maps; backbone\.name=mlp has none"),
        (["backbone.embedding_dim=4"], r"map_head=12 and backbone\.embedding_dim=4 both create the embedding"),
        (["backbone.map_head=-1"], r"backbone\.map_head=-1 must be at least 0"),
        (["backbone.linear_lr_factor=2"], r"linear_lr_factor=2 is for the linear layers of .*alexnet and vgg19"),
        (["backbone.linear_lr_factor=0"], r"linear_lr_factor=0 must be above 0"),
        (["backbone.fc7=true"], r"fc7=true follows fc6 of backbone\.name=alexnet"),
        (["backbone.fc7=true", "backbone.name=alexnet", "backbone.map_head=0"], r"classifier of method\.kind=cross_entropy"),
        (
            ["method.validation_triplets=0", "training.stop_metric=triplet/acc"],
            r"training\.stop_metric=triplet/acc is not measured for method\.kind=chai",
        ),
    ],
)  # fmt: skip
def test_impossible_settings(tmp_path: Path, more: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(tmp_path, tmp_path, *more)


def stop_after(run: Path, keep: int) -> None:
    """Leave the run's first `keep` checkpoints."""
    for folder in sorted((run / "checkpoints").glob("step-*"))[keep:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


@pytest.mark.parametrize("sampling", ["hierarchical", "joint"])
def test_a_resumed_run_is_the_run(pairs: Path, tmp_path: Path, sampling: str) -> None:
    """`joint` on a data set without blind groups makes its own with the start network, which a resumed run has not."""
    name = "without" if sampling == "joint" else "full"
    more = [
        f"method.sampling={sampling}",
        "method.kmeans_groups=4",
        "training.checkpoint_steps=1",
        "training.keep_checkpoints=9",
        "training.epochs=2",
    ]
    run = tmp_path / "run"
    train_run(settings(pairs / name, run, *more))
    whole = [(line["step"], line["train/loss"]) for line in read_metrics(run)]
    assert [step for step, _ in whole] == list(range(1, 9))
    assert len({loss for _, loss in whole}) == 8
    stop_after(run, 3)
    train_run(settings(pairs / name, run, *more), resume=True)
    assert [(line["step"], line["train/loss"]) for line in read_metrics(run)] == whole
    (made,) = [
        line["method/blind_groups"] for line in read_metrics(run) if "method/blind_groups" in line
    ] or [0]
    assert made == (4 if sampling == "joint" else 0)
    facts = json.loads((find_checkpoint(run) / "checkpoint.json").read_text())
    assert facts["progress"]["global_step"] == 8


def test_kmeans_groups_are_those_of_the_start_networks_features(pairs: Path, tmp_path: Path) -> None:
    config = settings(pairs / "without", tmp_path / "run", "method.sampling=joint", "method.kmeans_groups=4")
    train_run(config)
    state = torch.load(find_checkpoint(tmp_path / "run") / "state.pt", weights_only=True)["method"]
    start = settings(pairs / "without", tmp_path / "start", "backbone.map_head=0", "training.epochs=0")
    train_run(start)
    splits = split_run(Catalogue.open(pairs / "without"), start)
    features = open_trained(tmp_path / "start").embedder.embed(splits.train.ids)
    expected = group_by_kmeans(features, 4, seed=0, starts=config.evaluation.kmeans_runs)
    assert state["blind_groups"].tolist() == expected.tolist()
    assert len(set(expected.tolist())) == 4
    # Each image is in the group whose mean is nearest, by a plain loop.
    means = [features[expected == group].astype(np.float64).mean(axis=0) for group in range(4)]
    nearest = [min(range(4), key=lambda g: ((row - means[g]) ** 2).sum()) for row in features]
    assert nearest == expected.tolist()


def test_validation_is_by_triplets_of_images_kept_apart(pairs: Path, tmp_path: Path) -> None:
    config = settings(
        pairs / "full",
        tmp_path / "run",
        "method.sampling=hierarchical",
        "data.holdout_fraction=0.3",
        "training.patience=5",
        "training.stop_metric=triplet/acc",
        "training.epochs=2",
    )
    method, catalogue, splits = method_of(config)
    assert splits.stop is not None
    triplets = draw_validation(
        config.method, catalogue, splits.stop, dataset=config.data.dataset, seed=config.run.seed
    )
    assert triplets.shape == (50, 3)
    assert not np.isin(method.triplets, splits.stop.ids).any()
    # Groups are divided, scans are not.
    assert set(catalogue.groups[splits.stop.ids]) & set(catalogue.groups[splits.train.ids]) - {-1}
    assert not set(catalogue.units[splits.stop.ids]) & set(catalogue.units[splits.train.ids])
    train_run(config)
    scores = [line for line in read_metrics(tmp_path / "run") if "eval/triplet/acc" in line]
    assert len(scores) == 1 + 2  # the start, then each epoch
    assert not any("knn" in name for name in scores[0])
    best = max(scores, key=lambda line: line["eval/triplet/acc"])
    vectors = open_trained(tmp_path / "run").embedder.embed(splits.stop.ids).astype(np.float64)
    right, loss = 0, 0.0
    for a, b, c in vectors[triplets]:
        gap = ((a - b) ** 2).sum() - 0.5 * (((a - c) ** 2).sum() + ((b - c) ** 2).sum())
        right, loss = right + (gap < 0), loss + max(0.0, 1.0 + gap)
    assert best["eval/triplet/acc"] == pytest.approx(right / 50, abs=1e-9)
    assert best["eval/triplet/loss"] == pytest.approx(loss / 50, rel=1e-4)


def test_a_run_stopped_by_neighbours_measures_triplets_too(pairs: Path, tmp_path: Path) -> None:
    more = ["data.holdout_fraction=0.3", "training.patience=5"]
    train_run(settings(pairs / "full", tmp_path / "run", *more))
    start, scores = (line for line in read_metrics(tmp_path / "run") if "eval/triplet/loss" in line)
    assert "eval/knn/mcr@5" in start.keys() & scores.keys()


def test_the_map_head_goes_along_where_both_have_one(pairs: Path, tmp_path: Path) -> None:
    train_run(settings(pairs / "full", tmp_path / "disease"))
    after = [f"backbone.weights={tmp_path / 'disease'}", "training.epochs=0"]
    train_run(settings(pairs / "full", tmp_path / "next", *after))
    theirs, ours = (
        torch.load(find_checkpoint(tmp_path / run) / "state.pt", weights_only=True)["network"]
        for run in ("disease", "next")
    )
    assert "map_head.conv.weight" in ours
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(RequestError, match=r"has a map head of 12 maps, this run has backbone\.map_head=6"):
        train_run(settings(pairs / "full", tmp_path / "other", *after, "backbone.map_head=6"))
    # Without a head of its own a run takes the backbone alone; from a run without one, it draws its own.
    train_run(settings(pairs / "full", tmp_path / "bare", *after, "backbone.map_head=0"))
    bare = torch.load(find_checkpoint(tmp_path / "bare") / "state.pt", weights_only=True)["network"]
    assert not any(re.match("map_head", name) for name in bare)
    train_run(
        settings(
            pairs / "full", tmp_path / "drawn", f"backbone.weights={tmp_path / 'bare'}", "training.epochs=0"
        )
    )
    drawn = find_checkpoint(tmp_path / "drawn") / "state.pt"
    network = torch.load(drawn, weights_only=True)["network"]
    assert not torch.equal(network["map_head.conv.weight"], ours["map_head.conv.weight"])
    backbone = [name for name in network if name.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(network[name], ours[name]) for name in backbone)
