"""Embeddings by sample id, and the index of a selection that all workers embed together."""

import dataclasses
import io
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.loader import Loader, Request, Source
from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import TrainingError, VersionError
from fsl_dist.finite import describe_bad
from fsl_dist.methods.mining.neighbour_table import WEIGHTS, mine_part
from fsl_dist.models.embedding import Network, without_heads
from fsl_dist.samplers.scan import scan_batches, share_of_rank
from index import IndexConfig, LocalIndex, Owner, Staging, open_index
from index.base.files import new_token, remove_folder, write_atomic
from index.base.scratch import is_writable, unkept_folder
from index.base.stopping import StopRequest
from index.runtime import keep_freed_memory
from index.vectors import find_bad_row
from index.versions import CURRENT, check_files, find_version, read_manifest

log = logging.getLogger(__name__)


class EmbeddingStopped(Exception):
    """Embedding was stopped between two batches, on every worker, because one of them received a stop request."""


_STOPPED = "stop requested"


@contextmanager
def evaluation_mode(network: torch.nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients; the previous mode is restored after it."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


class Embedder:
    """Embeds samples with the test transform. Batch boundaries do not depend on the number of workers.

    On a CPU, the process keeps freed memory from now on (`index.runtime`).
    """

    def __init__(
        self,
        network: Network,
        source: Source,
        *,
        device: torch.device,
        batch_size: int,
        prefetch: int,
        use_bf16: bool = False,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.network = network
        self.source = source
        self.device = device
        self.batch_size = batch_size
        self.prefetch = prefetch
        self.use_bf16 = use_bf16
        self.num_embedded = 0
        self.stop: StopRequest | None = None
        """checked by `embed` between two batches; None: embed to the end"""

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.network.embedding_dim

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed `ids`, in eval mode: float32 [len(ids), dim].

        Raises TrainingError, which names the sample, if an embedding is not finite, and EmbeddingStopped on a stop
        request.
        """
        vectors = np.empty((len(ids), self.dim), dtype=np.float32)
        batches = list(scan_batches(0, len(ids), self.batch_size))
        requests = (Request(ids[rows]) for rows in batches)
        with evaluation_mode(self.network), Loader(self.source, requests, self.prefetch) as loader:
            for rows, (_, images) in zip(batches, loader, strict=True):
                if self.stop is not None and self.stop.is_set:
                    raise EmbeddingStopped
                vectors[rows] = self._forward(images, partial(self._name_sample, ids[rows]))
        self.num_embedded += len(ids)
        return vectors

    def embed_images(self, images: torch.Tensor, names: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Embed one batch of decoded images (float32 [n, *sample_shape]), in eval mode: float32 [n, dim].

        names: of the images, for errors. Raises TrainingError if an embedding is not finite.
        """
        with evaluation_mode(self.network):
            return self._forward(images, lambda row: names[row] if names else f"image {row} of a batch")

    def map_images(self, images: torch.Tensor) -> NDArray[np.float32]:
        """Compute feature maps of one batch of decoded images, in eval mode: float32 [n, C, h, w].

        Raises ConfigError for a backbone without feature maps.
        """
        with (
            evaluation_mode(self.network),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16),
        ):
            return self.network.feature_maps(images.to(self.device)).float().cpu().numpy()

    def classify(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n, num_classes]: the classifier's logits of embeddings (float32 [n, dim])."""
        with evaluation_mode(self.network):
            # A copy: vectors of an index are mapped read-only, which torch warns of.
            return self.network.classify(torch.tensor(vectors, device=self.device)).float().cpu().numpy()

    def of_network(self, network: Network) -> "Embedder":
        """The same samples, batches and precision for another network, which must be on this device."""
        return Embedder(
            network,
            self.source,
            device=self.device,
            batch_size=self.batch_size,
            prefetch=self.prefetch,
            use_bf16=self.use_bf16,
        )

    def _name_sample(self, ids: NDArray[np.int64], row: int) -> str:
        return self.source.catalogue.describe_sample(int(ids[row]))

    def _forward(self, images: torch.Tensor, name: Callable[[int], str]) -> NDArray[np.float32]:
        """`name` returns the name of an image whose embedding is not finite."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16):
            embedded = self.network.embed(images.to(self.device))
        vectors = embedded.float().cpu().numpy()
        bad = find_bad_row(vectors)
        if bad is not None:
            raise TrainingError(
                f"the embedding of {name(bad[0])} {describe_bad(self.network)}: the network's weights or "
                "this input give such numbers (training.precision=float32 reaches further; an earlier checkpoint; "
                "in training, lower training.lr and training.weight_decay)"
            )
        return vectors


class TableMiners(Protocol):
    """Builds neighbour tables concurrently with the training workers."""

    def start(self, folder: Path, num_same: int, num_other: int) -> None:
        """Start building the table in `folder`, with the parameters in its weights file."""
        ...

    def finish(self, folder: Path) -> None:
        """Wait until the table is complete; returns at once for a table that was not started here."""
        ...


class SelectionIndex:
    """The index of one selection at the current parameters, embedded by all workers together.

    It is built when it is first opened after `move_to`, and shared by all users at that step. A validation at the end
    of an epoch and the k-means or mining refresh at the start of the next one embed only once. With `reuse`, a
    version on disk that was made with the same parameters and the same catalogue is used. If `folder` is not
    writable, the index is built in a temporary folder.
    """

    def __init__(
        self,
        embedder: Embedder,
        catalogue: Catalogue,
        selection: Selection,
        folder: Path,
        *,
        group: WorkerGroup,
        config: IndexConfig,
        owner: Owner | None,
        reuse: bool = False,
        miners: TableMiners | None = None,
    ) -> None:
        self.embedder = embedder
        self.miners = miners
        self.reuse = reuse
        self.catalogue = catalogue
        self.selection = selection
        self.folder = folder
        self.group = group
        self.config = config
        self.owner = owner
        self.dim = embedder.dim
        self.parameters = ""
        self._opened: LocalIndex | None = None

    def move_to(self, parameters: str) -> None:
        """Set the name of the network's current parameters (letters, digits, -): "step-00000120"."""
        if parameters != self.parameters:
            self._opened = None
            self.parameters = parameters

    def share(self) -> slice:
        """The rows (positions in the selection) this worker embeds, cut at batch boundaries."""
        start, stop = share_of_rank(
            len(self.selection), self.embedder.batch_size, self.group.rank, self.group.world_size
        )
        return slice(start, stop)

    def open(self) -> LocalIndex:
        """The index, the same on every worker. Collective: all workers call it, or none."""
        if self._opened is None:
            source = {"catalogue": self.catalogue.fingerprint, "parameters": self.parameters}
            finished = self.group.share_text(str(self._find(source) or "") if self.group.is_first else "")
            if not finished and self.reuse and not is_writable(self.folder):
                self.folder = unkept_folder(self.folder)
                finished = str(self._find(source) or "")
            path = Path(finished or self._build(source))
            gpu = self.embedder.device.index or 0
            self._opened = open_index(path, verify=bool(finished), device=self.config.device, gpu=gpu)
        return self._opened

    def features(self) -> NDArray[np.float32]:
        """Compute the backbone's features before any head, in the selection's order: float32 [num_images, feature_dim].

        Uses the current parameters; nothing is cached. Collective: each worker embeds its share.
        """
        bare = self.embedder.of_network(without_heads(self.embedder.network))
        features = torch.zeros(len(self.selection), bare.dim, device=bare.device)
        own = bare.embed(self.selection.ids[self.share()])
        features[self.share()] = torch.from_numpy(own).to(bare.device)
        return self.group.sum_(features).cpu().numpy()

    def start_table(self, folder: Path, num_same: int, num_other: int, weights: Path | None = None) -> None:
        """Start filling `folder` with the neighbour table at the current parameters, or at those in `weights`.

        Collective. Without miners it is complete on return: each worker searches for the images that it embedded. With
        miners the work continues concurrently with training. Raises TrainingError if `weights` are given but there is
        no miner to load them, or if the file is missing.
        """
        if self.miners is None:
            if weights is not None:
                raise TrainingError(
                    f"the neighbour table {weights.parent} is not whole (train into a new run.dir, or remove the "
                    "newest checkpoint to resume from the one before it)"
                )
            mine_part(folder, self.group.rank, self.open(), self.selection, self.share(), num_same, num_other)
        elif self.group.is_first:
            folder.mkdir(parents=True)
            if weights is None:
                buffer = io.BytesIO()
                torch.save(self.embedder.network.state_dict(), buffer)
                write_atomic(folder / WEIGHTS, buffer.getvalue())
            elif weights.is_file():
                shutil.copy(weights, folder / WEIGHTS)
            else:
                raise TrainingError(
                    f"{weights} is missing, which the checkpoint needs to resume its refresh (remove the newest "
                    "checkpoint to resume from the one before it)"
                )
            self.miners.start(folder, num_same, num_other)

    def finish_table(self, folder: Path) -> None:
        """Return once the table in `folder` is whole. Collective."""
        if self.miners is not None and self.group.is_first:
            self.miners.finish(folder)
            (folder / WEIGHTS).unlink(missing_ok=True)
        self.group.barrier()

    def _find(self, source: dict[str, str]) -> Path | None:
        """The published version made from `source`, if it may be reused, is current and contains this selection."""
        if not self.reuse:
            return None
        try:
            version = find_version(self.folder)
            manifest = read_manifest(version)
            check_files(version, manifest, verify=True)
        except VersionError as error:
            if (self.folder / CURRENT).exists():  # otherwise there is no index yet
                log.warning("%s; the images are embedded again", error)
            return None
        wanted = (source, self.config.kind, self.config.metric)
        is_same = (dict(manifest.source), manifest.kind, manifest.metric) == wanted
        return version if is_same and manifest.num_vectors == len(self.selection) else None

    def _build(self, source: dict[str, str]) -> Path:
        # A separate token: shards of a killed attempt or of another process must not be mixed in.
        token = self.group.share_text(new_token())
        if self.group.is_first:
            Staging.create(self.folder, token, self.owner)
        self.group.barrier()
        staging = Staging.open(self.folder, token, self.owner)
        ids = self.selection.ids[self.share()]
        vectors, problem = np.empty((0, self.dim), dtype=np.float32), ""
        try:
            vectors = self.embedder.embed(ids)
        except TrainingError as error:
            problem = str(error)
        except EmbeddingStopped:
            problem = _STOPPED
        problem = self.group.first_text(problem)
        if problem and self.group.is_first:
            remove_folder(staging.folder)
        if problem == _STOPPED:
            raise EmbeddingStopped
        if problem:  # raised on all workers: the others would wait for this one's shard
            raise TrainingError(f"the network of {self.parameters} has diverged: {problem}")
        staging.write_shard(self.group.rank, vectors, self.config.metric)
        self.group.barrier()
        version = ""
        if self.group.is_first:
            config = dataclasses.replace(self.config, shards=self.group.world_size)
            version = str(staging.publish(self.selection.sample_labels, self.selection.ids, config, source))
        return Path(self.group.share_text(version))
