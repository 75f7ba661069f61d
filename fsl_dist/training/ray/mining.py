"""Mining concurrently with training: separate Ray actors embed, index and search while workers train.

A refresh is a chain of remote calls in which each stage's results are the next one's arguments. Every actor embeds
its share with the weights in the table's folder, the first one publishes the index, and every actor searches for its
share and writes its part of the table. Actors and workers communicate by files, each of which is published atomically.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsl_dist.config import RunConfig, parse_config, render_config
from fsl_dist.errors import FslDistError, TrainingError, VersionError
from index.base.files import Owner

# A restarted actor does its call again; every call may be done twice.
_RESTARTS = 3


class Miners:
    """The actors of one run, in the form in which they are pickled to its first training worker."""

    def __init__(self, actors: list[Any]) -> None:
        self.actors = actors
        self._running: dict[Path, list[Any]] = {}

    def start(self, folder: Path, num_same: int, num_other: int) -> None:
        """Start building the table in `folder`, with the parameters in its weights file
        (`TrainingIndex.start_table`)."""
        created = self.actors[0].create.remote(str(folder))
        embedded = [actor.embed.remote(str(folder), created) for actor in self.actors]
        version = self.actors[0].publish.remote(str(folder), *embedded)
        self._running[folder] = [
            actor.search.remote(str(folder), version, num_same, num_other) for actor in self.actors
        ]

    def finish(self, folder: Path) -> None:
        """Wait until that table is complete; returns at once for a table that was not started here.

        Raises the errors that actors found, and a Ray error if an actor died more often than it is restarted.
        """
        import ray

        try:
            ray.get(self._running.pop(folder, []))
        except ray.exceptions.RayTaskError as error:
            cause: BaseException | None = error
            while isinstance(cause, ray.exceptions.RayTaskError):
                cause = cause.cause
            if isinstance(cause, FslDistError):
                raise cause from error
            raise


class _Miner:
    """One actor: a network, a way to read images, and its share of the training selection."""

    def __init__(self, config: str, owner: tuple[str, int], rank: int, use_gpu: bool) -> None:
        import torch

        from fsl_dist.data.loader import open_source
        from fsl_dist.embedder import Embedder
        from fsl_dist.models.backbones import build_network
        from fsl_dist.samplers.scan import share_of_rank
        from fsl_dist.training.splits import split_run

        folder, epoch = owner
        self.owner = Owner(Path(folder), epoch)
        self.rank = rank
        self.config = parse_config(config, [], "the driver's configuration")
        self.config = dataclasses.replace(self.config, run=dataclasses.replace(self.config.run, dir=folder))
        self.device = torch.device("cuda:0" if use_gpu else "cpu")
        batch_size = self.config.evaluation.batch_size
        source = open_source(self.config.data, self.config.run.seed, str(self.device), max_batch=batch_size)
        self.catalogue = source.catalogue
        self.selection = split_run(source.catalogue, self.config).train
        # The weights come with each refresh.
        backbone = dataclasses.replace(self.config.backbone, weights="", pretrained=False)
        self.network = build_network(
            backbone,
            sample_shape=source.sample_shape,
            num_classes=self.selection.num_classes if self.config.method.traits.has_classifier else 0,
            normalise=getattr(self.config.method, "normalise", False),
        ).to(self.device)
        self.embedder = Embedder(
            self.network,
            source,
            device=self.device,
            batch_size=batch_size,
            prefetch=self.config.data.prefetch,
            use_bf16=self.config.training.uses_bf16(self.device.type),
        )
        self.share = slice(*share_of_rank(len(self.selection), batch_size, rank, self.config.mining.actors))
        self.out = Path(folder) / "index" / "mining"

    def ready(self) -> None:
        """Answered once the actor runs."""

    def create(self, folder: str) -> None:
        """Create the staging folder of the index; its token is the table's name."""
        from index import Staging

        Staging.create(self.out, Path(folder).name, self.owner)

    def embed(self, folder: str, _created: None) -> None:
        """Write the embeddings of this actor's share as its shard of the index."""
        import torch

        from fsl_dist.methods.mining.neighbour_table import WEIGHTS
        from index import Staging
        from index.base.object_cache import bring_file

        bring_file(Path(folder) / WEIGHTS)
        try:
            weights = torch.load(Path(folder) / WEIGHTS, map_location=self.device, weights_only=True)
        except (
            RuntimeError,
            ValueError,
            OSError,
            EOFError,
        ) as error:  # torch compares its archive's checksums
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(f"{Path(folder) / WEIGHTS} is damaged: {reason}") from None
        self.network.load_state_dict(weights)
        vectors = self.embedder.embed(self.selection.ids[self.share])
        staging = Staging.open(self.out, Path(folder).name, self.owner)
        staging.write_shard(self.rank, vectors, self.config.index.metric)

    def publish(self, folder: str, *_embedded: None) -> str:
        """Publish the index of all shards; returns the version's folder."""
        from index import Staging
        from index.versions import find_version, read_manifest

        name = Path(folder).name
        source = {"catalogue": self.catalogue.fingerprint, "parameters": name}
        with suppress(VersionError):  # of an index not published before
            version = find_version(self.out)
            if dict(read_manifest(version).source) == source:  # the call of an actor that died after it
                return str(version)
        config = dataclasses.replace(self.config.index, shards=self.config.mining.actors)
        staging = Staging.open(self.out, name, self.owner)
        return str(staging.publish(self.selection.sample_labels, self.selection.ids, config, source))

    def search(self, folder: str, version: str, num_same: int, num_other: int) -> None:
        """Write this actor's rows of the table."""
        from fsl_dist.methods.mining.neighbour_table import mine_part
        from index import open_index

        # Written just now.
        index = open_index(Path(version), verify=False, device=self.config.index.device)
        self.owner.check()
        mine_part(Path(folder), self.rank, index, self.selection, self.share, num_same, num_other)


@contextmanager
def beside_training(config: RunConfig, owner: Owner) -> Iterator[Miners | None]:
    """The actors of a run that mines concurrently with training, during the block; None for other runs."""
    if not config.mining.is_beside:
        yield None
        return
    import ray

    mining = config.mining
    remote = ray.remote(
        num_cpus=mining.cpus, num_gpus=mining.gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )(_Miner)
    settings = render_config(config), (str(owner.folder), owner.epoch)
    actors = [remote.remote(*settings, rank, mining.gpus > 0) for rank in range(mining.actors)]
    try:
        # Before the workers reserve the CPUs: an actor that cannot start must fail now, not at the first refresh.
        ray.get([actor.ready.remote() for actor in actors])
        yield Miners(actors)
    finally:
        for actor in actors:
            ray.kill(actor)
