"""A trained run, opened for use: its configuration, its best network, and a data set to use it on."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from fsl_dist.config import CONFIG_FILE, RunConfig, load_run
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.loader import open_source
from fsl_dist.embedder import Embedder
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.models.backbones import build_network
from fsl_dist.training.checkpoint import START, TENSORS, CheckpointFolder, load_weights, read_checkpoint
from index import ShardedIndex
from index.base.object_cache import bring, bring_file, working_folder


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """An opened checkpoint of a run, for embedding and scoring."""

    config: RunConfig
    catalogue: Catalogue
    embedder: Embedder
    parameters: str
    """name and checksum of the checkpoint: identifies the network in the source of an index"""
    gallery: ShardedIndex | None = None
    """an index of the training images that was built elsewhere; without it they are embedded when needed"""
    kept_in: str = "evaluation"
    """folder under the run for the embeddings that are cached for its scores"""

    @property
    def run(self) -> str:
        """The run's folder."""
        return self.config.run.dir

    def close(self) -> None:
        """Let go of the data set's files and the decoder."""
        self.embedder.source.close()

    @property
    def is_start(self) -> bool:
        """Whether the network is the one that training started from."""
        return self.parameters.startswith(START)


def find_checkpoint(run: Path) -> Path:
    """Folder of a run's best checkpoint, or of the last one if it did not validate;
    RequestError if there is none yet."""
    checkpoints = CheckpointFolder(run, keep=1, owner=None)
    checkpoints.refresh()
    folder = checkpoints.best() or checkpoints.latest()
    if folder is None:
        raise RequestError(
            f"{run} has no checkpoint yet (training it with resume=True and run.dir={run} continues it)"
        )
    return folder


def resolve_weights(config: RunConfig) -> RunConfig:
    """Return `config` with a run's folder in `backbone.weights` replaced by the file of its best checkpoint.

    This is recorded once, when a run starts, because the other run may be trained further. Raises ConfigError for a
    folder that is not a run or has another backbone, RequestError for one without a checkpoint.
    """
    run = Path(config.backbone.weights).expanduser()
    bring_file(run)  # a file of weights, or the run that is named
    bring_file(run / CONFIG_FILE)
    if not config.backbone.weights or not run.is_dir():
        return config
    own, other = config.backbone, load_run(run).backbone
    for field in ("name", "padding"):  # different sizes are reported when the weights are loaded
        if getattr(own, field) != getattr(other, field):
            raise ConfigError(
                f"backbone.weights={run} is a run with backbone.{field}={getattr(other, field)}, this one has "
                f"backbone.{field}={getattr(own, field)}; the backbone must be the same to start from it"
            )
    if other.lora_rank:
        raise ConfigError(
            f"backbone.weights={run} is a run with backbone.lora_rank={other.lora_rank}, whose updates are apart "
            "from its weights (export it as .safetensors, which adds them, and name that file)"
        )
    checkpoint = find_checkpoint(run)
    bring(checkpoint)
    weights = str(checkpoint / TENSORS)
    return dataclasses.replace(config, backbone=dataclasses.replace(own, weights=weights))


def open_trained(run: Path, *, dataset: Path | None = None, version: int = 0) -> TrainedRun:
    """Open a run's best checkpoint (the last one, if it did not validate) for `dataset`, by default the run's own.

    The run's own data set is opened at the catalogue version of the training, another one at `version` (0: its
    current one).

    Raises ConfigError if `run` is not a run, RequestError if it has no checkpoint yet.
    """
    run = working_folder(run)
    config = load_run(run)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(run)))
    if dataset is not None:
        data = dataclasses.replace(config.data, dataset=str(dataset), version=version)
        config = dataclasses.replace(config, data=data)
    folder = find_checkpoint(run)
    device = torch.device("cuda:0" if torch.cuda.is_available() and config.workers.gpu == "auto" else "cpu")
    source = open_source(config.data, config.run.seed, str(device), max_batch=config.evaluation.batch_size)
    checkpoint = read_checkpoint(folder, device)
    biases = checkpoint.trained.get("classifier.bias")
    # The weights come from the checkpoint.
    backbone = dataclasses.replace(config.backbone, weights="", pretrained=False)
    network = build_network(
        backbone,
        sample_shape=source.sample_shape,
        num_classes=0 if biases is None else len(biases),
        normalise=getattr(config.method, "normalise", False),
    ).to(device)
    if config.data.features and checkpoint.catalogue != source.catalogue.fingerprint:
        raise RequestError(
            f"{run} was trained on the features of another data set (data.features={config.data.features}); "
            f"{config.data.dataset} has no own features here (a run on images embeds any data set)"
        )
    load_weights(network, checkpoint.trained, folder)
    embedder = Embedder(
        network,
        source,
        device=device,
        batch_size=config.evaluation.batch_size,
        prefetch=config.data.prefetch,
        use_bf16=config.training.uses_bf16(device.type),
    )
    return TrainedRun(config, source.catalogue, embedder, f"{folder.name}-{checkpoint.crc32:08x}")


def open_start(trained: TrainedRun) -> TrainedRun | None:
    """Open the network that `trained` started from, on the same samples; None if the run has no start checkpoint.

    It shares the data set's files with `trained`, so only that one is closed.
    """
    if trained.is_start:
        return trained
    checkpoints = CheckpointFolder(Path(trained.run), keep=1, owner=None)
    checkpoints.refresh()
    folder = checkpoints.start()
    if folder is None:
        return None
    checkpoint = read_checkpoint(folder, trained.embedder.device)
    network = copy.deepcopy(trained.embedder.network)
    load_weights(network, checkpoint.network, folder)
    return TrainedRun(
        trained.config,
        trained.catalogue,
        trained.embedder.of_network(network),
        f"{folder.name}-{checkpoint.crc32:08x}",
        kept_in="evaluation/start",
    )
