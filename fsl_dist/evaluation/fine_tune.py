"""Fine-tuning on novel classes (PCN's FT-CE): for each draw,
the classifier is retrained with the draw's support images.

A draw starts from the run's best network. Its classifier keeps the rows of the base classes and gets a new row for
each novel class. Then the whole network trains on base training images and the draw's support, with classes drawn
uniformly, by the run's own optimizer and learning rate, for at most `evaluation.fine_tune_epochs` epochs. The best
epoch by mean class accuracy over the base classes' validation images is used, since novel classes have none; without
validation (training.patience=0) the last one. The paper does not say where FT-CE starts and how long it trains.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.config import RunConfig, RunFolder
from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.embedder import Embedder
from fsl_dist.methods.cross_entropy import CrossEntropyConfig
from fsl_dist.metrics.class_scores import Repeated, rank_targets
from fsl_dist.metrics.few_shot import (
    Draw,
    check_novel,
    draw_novel,
    draw_scores,
    largest_classes,
    over_draws,
    positions_among,
    warn_of_untrained,
)
from fsl_dist.models.embedding import Network
from fsl_dist.seeding import generator
from fsl_dist.training.checkpoint import Progress, read_checkpoint
from fsl_dist.training.loop import Trainer
from fsl_dist.training.splits import RunSplits
from fsl_dist.training.trained import TrainedRun
from index.base.errors import VersionError
from index.base.files import hold_lock, open_array, pack_arrays, remove_folder, unpack_arrays, write_atomic
from index.base.scratch import is_writable, unkept_folder
from index.base.settings import dump

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class TunedDraw:
    """The predictions for the test images by a classifier that was retrained for one draw."""

    ids: NDArray[np.int64]
    """int64 [n]: sample ids of the base classes' test images, then of the draw's novel ones"""
    ranks: NDArray[np.int64]
    """int64 [n]: rank of the true class, 0 the best"""
    predicted: NDArray[np.int64]
    """int64 [n]: label of the best class"""


def evaluate_fine_tune(
    trained: TrainedRun, config: RunConfig, splits: RunSplits, novel: Selection
) -> dict[str, float | Repeated]:
    """Score base and novel classes in one label space, by a classifier that is retrained for each draw.

    Draws, groups and names are those of `evaluate_prototypes`. `trained` must have a classifier; `novel`: all novel
    images. Trains in this process. RUN/evaluation/fine_tune keeps the result of every finished draw and the
    checkpoints of the current one, so that a killed evaluation resumes; other settings use other folders.

    Raises RequestError if the novel classes are not suitable, or if another process runs the same evaluation.
    """
    labels = trained.catalogue.labels
    base_labels = labels[:0] if splits.query is None else splits.query.sample_labels
    warn_of_untrained(base_labels, splits.train.labels, trained.catalogue.class_names)
    scores: list[dict[str, float]] = []
    for number in range(config.evaluation.draws):
        tuned = tune_draw(trained, config, splits, novel, number)
        scores.append(draw_scores(tuned.ranks, labels[tuned.ids], len(base_labels)))
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores[-1].items() if "mca/" in name)
        log.info("fine_tune: draw %d of %d: %s", number + 1, config.evaluation.draws, shown)
    return over_draws(scores)


def tune_draw(
    trained: TrainedRun, config: RunConfig, splits: RunSplits, novel: Selection, number: int
) -> TunedDraw:
    """Train and test draw `number`, or read its stored result. Arguments as in `evaluate_fine_tune`."""
    kept = largest_classes(novel.sample_labels, config.evaluation)
    novel = novel.keep_classes(np.isin(novel.labels, kept))
    check_novel(novel.sample_labels, splits.train.labels, config.evaluation, trained.catalogue.class_names)
    draw = draw_novel(novel.sample_labels, config.evaluation, seed=config.run.seed, draw=number)
    base_ids = np.empty(0, dtype=np.int64) if splits.query is None else splits.query.ids
    ids = np.concatenate([base_ids, novel.ids[draw.test]])
    folder = Path(config.run.dir) / "evaluation" / "fine_tune" / name_of_settings(trained, config, splits)
    if not is_writable(folder):
        folder = unkept_folder(folder)
    finished = folder / f"draw-{number:03d}.npz"
    with hold_lock(folder.with_suffix(".lock")):
        if not finished.is_file() and finished.with_suffix(".npy").is_file():  # of an earlier version
            ranks, predicted = open_array(finished.with_suffix(".npy"))
            write_atomic(finished, pack_arrays(ranks=ranks, predicted=predicted))
        if not finished.is_file():
            ranks, predicted = _train_and_classify(trained, config, splits, novel, draw, ids, folder)
            write_atomic(finished, pack_arrays(ranks=ranks, predicted=predicted))
        remove_folder(finished.with_suffix(""))
    found = unpack_arrays(finished)
    if any(found.get(name, ids[:0]).shape != ids.shape for name in ("ranks", "predicted")):
        raise VersionError(
            f"{finished} is damaged: it is not of {len(ids)} images (remove it to train the draw again)"
        )
    return TunedDraw(ids, found["ranks"], found["predicted"])


def _train_and_classify(
    trained: TrainedRun,
    config: RunConfig,
    splits: RunSplits,
    novel: Selection,
    draw: Draw,
    ids: NDArray[np.int64],
    folder: Path,
) -> NDArray[np.int64]:
    """Ranks of the true classes of `ids` (int64 [n]) and labels of the best, int64 [2, n],
    by a network trained for this draw."""
    train = selection_of_draw(splits, novel, draw)
    embedder = trained.embedder
    trainer = Trainer(
        config_of_draw(config, folder / f"draw-{draw.number:03d}", draw),
        group=WorkerGroup(),
        device=embedder.device,
        owner=None,
        splits=replace(splits, train=train, gallery=train),
        # Validation images are of base classes only: a start without novel classes would win.
        start_competes=False,
    )
    if trainer.progress == Progress():
        start_from(embedder.network, trainer.network, positions_among(splits.train.labels, train.labels))
    trainer.train()
    best = trainer.checkpoints.best() or trainer.checkpoints.latest()
    assert best is not None
    trainer.network.load_state_dict(read_checkpoint(best, embedder.device).trained)
    tuned: Embedder = embedder.of_network(trainer.network)
    logits = tuned.classify(tuned.embed(ids))
    ranks = rank_targets(logits, positions_among(trained.catalogue.labels[ids], train.labels))
    return np.stack([ranks, train.labels[logits.argmax(axis=1)]])


def selection_of_draw(splits: RunSplits, novel: Selection, draw: Draw) -> Selection:
    """The training images of a draw: the run's own training images and the draw's support."""
    return Selection.from_labels(
        np.concatenate([splits.train.ids, novel.ids[draw.support]]),
        np.concatenate([splits.train.sample_labels, novel.sample_labels[draw.support]]),
    )


def config_of_draw(config: RunConfig, folder: Path, draw: Draw) -> RunConfig:
    """The run's configuration, for training in `folder` with separate random draws."""
    seed = int(generator(config.run.seed, "fine_tune", draw.number).integers(2**31))
    return replace(
        config,
        run=RunFolder(dir=str(folder), seed=seed),
        backbone=replace(config.backbone, weights="", pretrained=False),
        method=CrossEntropyConfig(
            balance="sampling", label_smoothing=getattr(config.method, "label_smoothing", 0.0)
        ),
        training=replace(
            config.training,
            epochs=config.evaluation.fine_tune_epochs,
            images=0,
            lr_milestones=(),
            stop_metric="mca/base",
            checkpoint_steps=0,
        ),
    )


def start_from(start: Network, network: Network, rows: NDArray[np.int64]) -> None:
    """Copy the run's network into `network`, its classifier's rows to `rows` (int64 [base classes]) of the larger
    one."""
    state = network.state_dict()
    for name, value in start.state_dict().items():
        if name.startswith("classifier."):
            state[name][rows] = value
        else:
            state[name].copy_(value)


def name_of_settings(trained: TrainedRun, config: RunConfig, splits: RunSplits) -> str:
    """12 hexadecimal digits that identify everything that determines a draw's result, apart from its number."""
    training = dump(config.training)
    facts = {
        "holds": ["rank", "label"],
        "parameters": trained.parameters,
        "catalogue": trained.catalogue.fingerprint,
        "queries": splits.query_split,
        "seed": config.run.seed,
        "training": {name: value for name, value in training.items() if name not in _NO_MATTER},
        "holdout": config.data.holdout_fraction,
        "evaluation": [
            config.evaluation.novel_shots,
            config.evaluation.novel_test,
            config.evaluation.novel_classes,
            config.evaluation.fine_tune_epochs,
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


# Training settings that are separate for each draw, or that do not change its result.
_NO_MATTER = (
    "epochs",
    "images",
    "lr_milestones",
    "lr_gamma",
    "stop_metric",
    "checkpoint_steps",
    "keep_checkpoints",
    "compile",
)
