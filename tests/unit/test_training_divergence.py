"""What is not finite stops a run, with one line: every method × optimizer at an absurd learning rate, bad inputs, bad weights."""

import dataclasses
import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import FslDistError, RequestError, TrainingError
from fsl_dist.finite import find_non_finite, first_bad_row
from fsl_dist.indexing import build_from_run, write_embeddings
from fsl_dist.methods.batch_hard import BatchHard
from fsl_dist.methods.method import BatchLoss
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.training.checkpoint import FACTS, TENSORS, CheckpointFolder, read_progress
from fsl_dist.training.launch import train_run
from fsl_dist.training.loop import Trainer
from fsl_dist.training.resume import check_folder
from fsl_dist.training.runlog import read_metrics
from fsl_dist.training.trained import open_start, open_trained
from index import IndexConfig
from index.base.checksums import encode_json
from index.base.files import Owner

EPISODES = ["episode.n_way=3", "episode.k_shot=2", "episode.n_query=2", "episode.per_epoch=3"]
HINGE = ["method.loss=hinge", "method.k_same=3", "method.m_other=3"]
METHODS = {
    "deep kNN": ["method.kind=deep_knn"],
    "deep kNN, raw": ["method.kind=deep_knn", "method.normalise=false"],
    "deep kNN, hinge": ["method.kind=deep_knn", *HINGE, "method.normalise=false"],
    "deep kNN, stratified": ["method.kind=deep_knn", *HINGE, "method.classes_per_batch=4"],
    "deep kNN, memory": ["method.kind=deep_knn", "mining.source=dataset"],
    "deep kNN, memory, hinge": ["method.kind=deep_knn", *HINGE, "mining.source=dataset"],
    "deep kNN, decoded": ["method.kind=deep_knn", *HINGE, "mining.source=dataset", "mining.neighbours=decoded"],
    "deep kNN, classifier": ["method.kind=deep_knn", "method.cross_entropy_weight=1"],
    "batch hard": ["method.kind=batch_hard", "method.classes_per_batch=4"],
    "batch hard, sphere": ["method.kind=batch_hard", "method.classes_per_batch=4", "method.normalise=true"],
    "few-shot NCA": ["method.kind=few_shot_nca", "method.classes_per_batch=4"],
    "cross entropy": ["method.kind=cross_entropy"],
    "pcn": ["method.kind=pcn", *EPISODES],
    "pcn, global": ["method.kind=pcn", *EPISODES, "episode.scope=global"],
    "scatter": ["method.kind=scatter", *EPISODES],
    "chai": ["method.kind=chai", "method.triplets=60", "method.validation_triplets=0"],
}  # fmt: skip
ABSURD = ["training.lr=1e30", "training.patience=0"]
UNSCHEDULED = ["training.warmup=0", "training.schedule=constant"]


@pytest.fixture(scope="module")
def features(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    catalogue = Catalogue.open(digits)
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(catalogue.num_classes, 6))
    path = tmp_path_factory.mktemp("features") / "x.npy"
    np.save(path, (centres[catalogue.labels] + rng.normal(size=(220, 6))).astype(np.float32))
    return path


def settings(digits: Path, features: Path, run: Path, *more: str) -> RunConfig:
    defaults = {"training.epochs": "2", "training.batch_size": "60", "backbone.batch_norm_group": "20"}
    given = {setting.partition("=")[0] for setting in more}
    return load_config(
        None,
        [
            f"data.dataset={digits}",
            f"data.features={features}",
            f"run.dir={run}",
            "backbone.name=mlp",
            "backbone.hidden=[8,4]",
            *(f"{name}={value}" for name, value in defaults.items() if name not in given),
            *more,
        ],
    )


def assert_says_divergence(error: pytest.ExceptionInfo[TrainingError], kind: str) -> None:
    text = str(error.value)
    assert error.value.exit_code == 1
    assert "diverged" in text
    assert f"method.kind={kind}" in text
    assert "(training.lr below 1e+30" in text
    assert "\n" not in text


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_in_the_error(
    digits: Path, features: Path, tmp_path: Path, method: str, optimizer: str
) -> None:
    """No loss of 0 and no trained run, though a hinge over NaN distances is 0 and has no gradient."""
    run = tmp_path / "run"
    config = settings(digits, features, run, *METHODS[method], *ABSURD, f"training.optimizer={optimizer}")
    with pytest.raises(TrainingError) as error:
        train_run(config)
    assert_says_divergence(error, config.method.kind)
    if config.method.kind == "chai":  # one step an epoch here
        assert "training diverged by step 1 " in str(error.value)
    else:
        assert "training diverged at step 2 of epoch 1" in str(error.value)
        assert "the output for sample '" in str(error.value)
    assert CheckpointFolder(run, keep=1, owner=None).latest() is None


@pytest.mark.parametrize(
    "more",
    [
        ["training.chunk_size=20"],
        ["training.ema=0.9"],
        ["training.clip_norm=0"],
        ["training.precision=bf16"],
    ],
    ids=str,
)
def test_so_does_every_form_of_a_step(digits: Path, features: Path, tmp_path: Path, more: list[str]) -> None:
    config = settings(digits, features, tmp_path / "run", *METHODS["batch hard"], *ABSURD, *more)
    with pytest.raises(TrainingError) as error:
        train_run(config)
    assert_says_divergence(error, "batch_hard")
    assert ("training.precision=float32" in str(error.value)) == ("bf16" in more[0])
    assert ("training.clip_norm=5" in str(error.value)) == ("clip_norm" in more[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("more", [[], ["training.ema=0.9"]], ids=str)
def test_a_last_step_that_diverges_is_found_though_none_follows_it(
    digits: Path, features: Path, tmp_path: Path, optimizer: str, more: list[str]
) -> None:
    one_step = ["training.images=1", f"training.optimizer={optimizer}", *UNSCHEDULED, *more]
    config = settings(digits, features, tmp_path / "run", *METHODS["batch hard"], *ABSURD, *one_step)
    with pytest.raises(TrainingError) as error:
        train_run(config)
    assert_says_divergence(error, "batch_hard")
    assert str(error.value).startswith("training diverged by step 1 ")
    assert "the network's tensor backbone." in str(error.value)


def test_with_validation_the_message_is_about_the_network(
    digits: Path, features: Path, tmp_path: Path
) -> None:
    more = ["training.lr=1e30", "training.images=1", *UNSCHEDULED, "training.optimizer=sgd"]
    with pytest.raises(TrainingError) as error:
        train_run(settings(digits, features, tmp_path / "run", *METHODS["batch hard"], *more))
    assert str(error.value).startswith("the network of step-00000001 has diverged: the embedding of sample '")
    assert "and so does the network's tensor backbone." in str(error.value)
    assert "shard-000000.tar" in str(error.value)
    assert (
        tmp_path / "run" / "checkpoints" / "step-00000000"
    ).is_dir()  # the start: a resumed run begins there


class Trusting(BatchHard):
    """A method of another distribution that never looks at its numbers."""

    def loss(self, outputs, batch):
        return BatchLoss(
            outputs.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1).mean() * 0.0,
            {"train/active_triplets": outputs.new_zeros(())},
        )


class Tripping(BatchHard):
    """One that fails in its own way on what is not finite."""

    def loss(self, outputs, batch):
        if not outputs.isfinite().all():
            raise ZeroDivisionError("the sum of my weights")
        return super().loss(outputs, batch)


class Exploding(BatchHard):
    """Finite outputs and a finite loss, but a gradient that is not: that of a square root at 0."""

    def loss(self, outputs, batch):
        found = super().loss(outputs, batch)
        return dataclasses.replace(
            found, loss=found.loss + (outputs - outputs.detach()).square().sum().sqrt()
        )


class Ruined(BatchHard):
    """Finite outputs, and a loss that is infinite."""

    def loss(self, outputs, batch):
        return dataclasses.replace(super().loss(outputs, batch), loss=outputs.sum() * torch.inf)


def train_with(method: type[BatchHard], config: RunConfig, poison: bool = False) -> Path:
    """Train with `method` in place of batch hard; `poison`: from weights of which one is NaN. Returns the run's folder."""
    run = check_folder(config, resumes=False)
    trainer = Trainer(config, group=WorkerGroup(), device=torch.device("cpu"), owner=Owner.claim(run))
    trainer.method.__class__ = method
    if poison:
        trainer.network.backbone[-1].weight.data[0, 0] = torch.nan
    trainer.train()
    return run


@pytest.mark.parametrize(
    ("method", "poison", "words"),
    [
        (Trusting, True, r"the output for sample '.*'\), row 0 of the 48 of its batch, contains .* tensor backbone\.\d\.weight"),
        (Tripping, True, r"the output for sample '.*'\), row 0 of the 48 of its batch, contains .* tensor backbone\.\d\.weight"),
        (Exploding, False, r"the norm of the gradient is nan, of 48 images: '\d/\d+', .*, … \("),
        (Ruined, False, r"the loss is (inf|-inf|nan), of 48 images: '\d/\d+', .*, … \("),
    ],
)  # fmt: skip
def test_methods_need_no_check_of_their_own(
    digits: Path, features: Path, tmp_path: Path, method: type[BatchHard], poison: bool, words: str
) -> None:
    once = ["training.patience=0", "training.max_bad_steps=1"]
    config = settings(digits, features, tmp_path / "run", *METHODS["batch hard"], *once)
    with pytest.raises(TrainingError, match=words) as error:
        train_with(method, config, poison)
    assert str(error.value).startswith("training diverged at step 1 of epoch 1 with method.kind=batch_hard: ")


class BadAt(BatchHard):
    """A gradient that is not finite in the steps `bad`, by their number in the run."""

    bad: tuple[int, ...] = ()
    calls = 0

    def loss(self, outputs, batch):
        type(self).calls += 1
        found = super().loss(outputs, batch)
        return dataclasses.replace(found, loss=found.loss * torch.inf) if self.calls in self.bad else found


def bad_at(*steps: int) -> type[BatchHard]:
    return type("BadAtSome", (BadAt,), {"bad": steps})


def lines_with(run: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in read_metrics(run) if name in line}


def test_a_bad_step_changes_nothing_and_is_counted(digits: Path, features: Path, tmp_path: Path) -> None:
    more = [*METHODS["batch hard"], "training.patience=0", "training.epochs=4", "training.checkpoint_steps=1"]
    more += ["training.keep_checkpoints=20", "training.ema=0.9"]
    run = train_with(bad_at(2, 4, 5), settings(digits, features, tmp_path / "run", *more))
    assert lines_with(run, "train/skipped_steps") == {2: 1.0, 3: 1.0, 4: 2.0, 5: 3.0, 6: 3.0, 7: 3.0, 8: 3.0}
    assert 2 not in lines_with(run, "train/loss")
    folders = CheckpointFolder(run, keep=1, owner=None).finished()
    states = {f.name[-1]: torch.load(f / TENSORS, weights_only=True) for f in folders}
    for before, after, is_same in (("1", "2", True), ("2", "3", False), ("3", "5", True), ("5", "6", False)):
        for part in ("network", "average"):
            same = [
                torch.equal(value, states[after][part][name]) for name, value in states[before][part].items()
            ]
            assert all(same) == is_same, (before, after, part)
    assert read_progress(folders[-1]).skipped_steps == 3


def test_bad_steps_in_a_row_end_the_run_with_the_way_back(
    digits: Path, features: Path, tmp_path: Path
) -> None:
    more = [*METHODS["batch hard"], "training.epochs=6", "training.max_bad_steps=2", "training.batch_size=48"]
    config = settings(digits, features, tmp_path / "run", *more, "training.patience=100")
    with pytest.raises(TrainingError, match="the last of 2 non-finite steps in a row") as error:
        train_with(bad_at(7, 8), config)
    back = int(re.search(r"resume=True with from_step=(\d+) goes back to", str(error.value))[1])
    kept = CheckpointFolder(tmp_path / "run", keep=1, owner=None)
    assert kept.folder / f"step-{back:08d}" in kept.finished()
    assert back <= 6
    with pytest.raises(RequestError, match=r"from_step=5999 is not a checkpoint of .*; existing ones: 0, "):
        train_run(config, resume=True, from_step=5999)
    with pytest.raises(RequestError, match="it needs resume=True"):
        train_run(config, from_step=back)
    train_run(config, resume=True, from_step=back)  # the method that broke is not in the configuration
    assert lines_with(tmp_path / "run", "train/skipped_steps") == {}
    whole = settings(digits, features, tmp_path / "whole", *more, "training.patience=100")
    train_run(whole)
    last = kept.latest()
    assert last is not None
    found, wanted = (
        torch.load(run / "checkpoints" / last.name / TENSORS, weights_only=True)["network"]
        for run in (tmp_path / "run", tmp_path / "whole")
    )
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_a_methods_own_error_on_sound_numbers_stays(digits: Path, features: Path, tmp_path: Path) -> None:
    class Broken(BatchHard):
        def loss(self, outputs, batch):
            raise ZeroDivisionError("my own")

    config = settings(digits, features, tmp_path / "run", *METHODS["batch hard"], "training.patience=0")
    with pytest.raises(ZeroDivisionError, match="my own"):
        train_with(Broken, config)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_bad_features_are_refused_before_anything_is_computed(
    digits: Path, features: Path, tmp_path: Path, value: float
) -> None:
    bad = np.load(features)
    bad[137, 4] = bad[201, 0] = value
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(RequestError) as error:
        train_run(settings(digits, tmp_path / "bad.npy", tmp_path / "run", *METHODS["cross entropy"]))
    sample = Catalogue.open(digits).describe_sample(137)
    assert str(error.value).startswith(f"data.features='{tmp_path / 'bad.npy'}' row 137 contains a ")
    assert f"it belongs to {sample}, and every feature must be finite" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(digits: Path, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "sound"
    train_run(settings(digits, features, run, *METHODS["cross entropy"], "training.epochs=1"))
    return run


def spoil(run: Path, copy: Path, change) -> Path:
    """A copy of a run whose checkpoints hold weights that `change` changed, with checksums to match."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").glob("step-*"):
        state = torch.load(folder / TENSORS, weights_only=True)
        change(state["network"])
        torch.save(state, folder / TENSORS)
        facts = json.loads((folder / FACTS).read_text())
        facts["crc32"] = zlib.crc32((folder / TENSORS).read_bytes())
        (folder / FACTS).write_bytes(encode_json(facts, folder.name))
    return copy


def put(name: str, value: float):
    def change(network: dict[str, torch.Tensor]) -> None:
        network[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_checkpoints_with_bad_weights_are_refused_with_the_tensors_name(
    trained: Path, digits: Path, features: Path, tmp_path: Path, value: float
) -> None:
    run = spoil(trained, tmp_path / "spoilt", put("backbone.4.weight", value))
    words = r"state\.pt: the tensor backbone\.4\.weight contains numbers that are NaN, infinite or near 1e18"
    with pytest.raises(TrainingError, match=words):
        open_trained(run)
    resumed = settings(digits, features, run, *METHODS["cross entropy"], "training.epochs=2")
    with pytest.raises(TrainingError, match=words):
        train_run(resumed, resume=True)
    begun = settings(digits, features, tmp_path / "new", f"backbone.weights={run}", "training.epochs=0")
    with pytest.raises(
        RequestError,
        match=r"backbone\.weights=\S+state\.pt \(entry 'network'\): the tensor backbone\.4\.weight contains",
    ):
        train_run(begun)
    sound = open_trained(trained)
    if not sound.is_start:
        other = dataclasses.replace(sound.config, run=dataclasses.replace(sound.config.run, dir=str(run)))
        with pytest.raises(TrainingError, match=words):
            open_start(dataclasses.replace(sound, config=other))


def test_nothing_is_written_of_embeddings_that_overflow(trained: Path, digits: Path, tmp_path: Path) -> None:
    """Weights that are finite, and embeddings that are not."""

    def enlarge(network: dict[str, torch.Tensor]) -> None:
        for name, value in network.items():
            if name.endswith("weight"):
                value *= 1e15

    run = spoil(trained, tmp_path / "large", enlarge)
    opened = open_trained(run)
    first = Catalogue.open(digits).describe_sample(0)
    for write in (
        lambda: write_embeddings(opened, tmp_path / "out" / "x.npy"),
        lambda: opened.embedder.embed(np.arange(220)),
        lambda: build_from_run(run, digits, tmp_path / "index", IndexConfig()),
    ):
        with pytest.raises(FslDistError) as error:
            write()
        assert (
            f"the embedding of {first} contains numbers that are NaN, infinite or near 1e18 and above"
            in str(error.value)
        )
        assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(TrainingError, match=r"the embedding of a\.png contains"):
        opened.embedder.embed_images(torch.ones(2, 6), ["a.png", "b.png"])


def test_which_weights_are_looked_at() -> None:
    network = build_network(BackboneConfig(name="conv4", width=4), sample_shape=(3, 16, 16))
    network.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert find_non_finite(network) == ""
    for name in ("backbone.2.0.weight", "backbone.3.1.bias", "backbone.0.1.running_var"):
        for value in (torch.nan, torch.inf, -torch.inf):
            tensors = {key: tensor.clone() for key, tensor in network.state_dict().items()}
            tensors[name][-1] = value
            assert find_non_finite(network, tensors) == name
    network.get_parameter("backbone.2.0.bias").data[0] = 2e18
    assert find_non_finite(network) == "backbone.2.0.bias"
    network.get_parameter("backbone.2.0.bias").data[0] = 1e17
    network.get_buffer("backbone.0.1.running_var")[0] = 1e20  # of pixels of 1e10: large, and of use
    assert find_non_finite(network) == ""


def test_the_first_bad_row_is_found() -> None:
    rows = torch.zeros(5, 4)
    assert first_bad_row(rows) == -1
    rows[3, 1], rows[4] = torch.nan, torch.inf
    assert first_bad_row(rows) == 3
    rows[1, 3] = -6e17  # squared distances of four such numbers leave float32's range
    assert first_bad_row(rows) == 1
    rows[1, 3] = -4e17
    assert first_bad_row(rows) == 3


def test_a_memory_that_does_not_fit_is_refused_before_anything_is_computed(
    digits: Path, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for more in ("mining.memory_gb=1e-6", "index.kind=ivf_pq"):
        with pytest.raises(
            RequestError, match=r"mining\.(memory_gb=1e-06 is below|neighbours=memory overwrites)"
        ):
            train_run(settings(digits, features, run, *METHODS["deep kNN, memory"], more))
        assert not run.exists()


def test_a_ruinous_weight_decay_is_named(digits: Path, features: Path, tmp_path: Path) -> None:
    more = [setting for setting in ABSURD if not setting.startswith("training.lr=")]
    more += ["training.lr=0.01", "training.weight_decay=1e30"]
    with pytest.raises(TrainingError, match=r"training\.weight_decay below 1e\+30") as error:
        train_run(settings(digits, features, tmp_path / "run", *METHODS["scatter"], *more))
    assert "\n" not in str(error.value)
