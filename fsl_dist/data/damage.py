"""Damaged samples that are found during a run: each is logged once and replaced by the next intact one of its class.

The ids of a batch do not change; only the bytes of a damaged sample come from another sample. So no shape, label or
neighbour changes. The replacement depends only on the files: it is the same on every worker and in every epoch,
whatever was read before.
"""

import logging
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.pixels import find_excess_pixels
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError

logger = logging.getLogger(__name__)

# Samples that are read to distinguish a damaged sample from a file that was replaced.
_NUM_PROBES = 8
# Bad samples named in the error that ends a run.
_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Encoded images of a batch, in the requested order."""

    samples: list[memoryview]
    """file content of each image"""
    ids: NDArray[np.int64]
    """int64 [n]: id of each content: the requested id, or that of its replacement"""


class SoundReader:
    """Reads samples by id; a damaged sample is replaced by an intact one of the same class and split.

    A sample is damaged if its bytes differ from its checksum, if it declares more than `max_pixels` pixels, or if the
    decoder refuses it (`replace`). The replacement is the next intact id of its class and split, cyclically.
    Thread-safe.

    Raises DataError if more than `max_bad_fraction` of the catalogue's samples were found damaged in this process, if a
    class has no intact sample left in a split, and if a shard is missing, truncated or another file.
    """

    def __init__(
        self, catalogue: Catalogue, store: ShardStore, *, max_pixels: int, max_bad_fraction: float
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._max_pixels = max_pixels
        self._max_bad_fraction = max_bad_fraction
        self._bad: dict[int, str] = {}
        self._probed: set[int] = set()
        self._lock = threading.Lock()

    @property
    def bad_samples(self) -> dict[int, str]:
        """Sample id → reason, for all damaged samples found so far."""
        return dict(self._bad)

    def read(self, ids: NDArray[np.int64]) -> EncodedBatch:
        """Encoded bytes for each of `ids` (int64 [n], any order, repeats allowed)."""
        taken = np.array(ids, dtype=np.int64)
        samples: list[memoryview] = [memoryview(b"")] * len(taken)
        places = np.arange(len(taken))
        while len(places):
            taken[places] = self._stand_ins(taken[places])
            read, reasons = self._read_some(taken[places])
            for place, sample in zip(places.tolist(), read, strict=True):
                samples[place] = sample
            for position, reason in reasons.items():
                self._record(int(taken[places[position]]), reason)
            places = places[list(reasons)]
        return EncodedBatch(samples, taken)

    def _read_some(self, ids: NDArray[np.int64]) -> tuple[list[memoryview], dict[int, str]]:
        """Bytes of each of `ids`, and position → reason for the bad ones among them."""
        samples, mismatched = self._store.read_compared(ids)
        reasons = dict.fromkeys(mismatched, "does not match its checksum")
        for position in mismatched:
            self._check_shard(int(ids[position]))
        for position, sample in enumerate(samples):
            if position not in reasons and (reason := find_excess_pixels(sample, self._max_pixels)):
                reasons[position] = reason
        return samples, reasons

    def replace(self, batch: EncodedBatch, position: int, reason: str) -> EncodedBatch:
        """Return the batch with a replacement for the image at `position`, which cannot be decoded."""
        self._record(int(batch.ids[position]), reason)
        stand_in = self.read(batch.ids[position : position + 1])
        samples, ids = list(batch.samples), batch.ids.copy()
        samples[position], ids[position] = stand_in.samples[0], stand_in.ids[0]
        return EncodedBatch(samples, ids)

    def _stand_ins(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: `ids`, with the next id of class and split not known as bad in the place of known bad ones."""
        taken = ids.copy()
        if not self._bad:
            return taken
        for position in np.flatnonzero(np.isin(ids, list(self._bad))).tolist():
            members = self._catalogue.class_range(int(ids[position]))
            after = int(ids[position]) + 1
            candidates = (*range(after, members.stop), *range(members.start, after))
            found = next((candidate for candidate in candidates if candidate not in self._bad), None)
            if found is None:
                label = int(self._catalogue.labels[ids[position]])
                raise DataError(
                    f"class '{self._catalogue.label_name(label)}': all {len(members)} samples of one split are bad, "
                    f"so none can replace it; {self._name_some()}; restore the shards or pack again"
                )
            taken[position] = found
        return taken

    def _record(self, sample_id: int, reason: str) -> None:
        with self._lock:
            if sample_id in self._bad:
                return
            self._bad[sample_id] = reason
        logger.warning(
            "%s %s; the next intact sample of its class is used instead", self._name(sample_id), reason
        )
        limit = self._max_bad_fraction * self._catalogue.num_samples + 1e-9
        if len(self._bad) > limit:
            raise DataError(
                f"{len(self._bad)} of {self._catalogue.num_samples} samples of '{self._catalogue.folder}' turned out "
                f"bad so far, more than data.max_bad_fraction={self._max_bad_fraction:g} allows ({int(limit)}): "
                f"{self._name_some()}; restore the shards or pack again (inspecting the data set with verify=True "
                "lists all), or raise the fraction"
            )

    def _name(self, sample_id: int) -> str:
        shard = self._catalogue.shards[int(self._catalogue.locate([sample_id]).shard[0])]
        key = self._catalogue.keys([sample_id])[0]
        return f"shard '{self._catalogue.folder / shard.name}': sample '{key}' (id {sample_id})"

    def _name_some(self) -> str:
        named = list(self._bad.items())[:_NUM_NAMED]
        rest = ", …" if len(self._bad) > len(named) else ""
        return ", ".join(f"{self._name(sample_id)} {reason}" for sample_id, reason in named) + rest

    def _check_shard(self, sample_id: int) -> None:
        """Raise DataError if no other sample of the damaged one's shard matches either: the file is another one."""
        shard = int(self._catalogue.locate([sample_id]).shard[0])
        with self._lock:
            if shard in self._probed:
                return
            self._probed.add(shard)
        others = self._catalogue.ids_of_shard(shard)
        others = others[others != sample_id]
        probes = others[np.linspace(0, len(others) - 1, min(_NUM_PROBES, len(others))).astype(np.int64)]
        if len(probes) and len(self._store.read_compared(probes)[1]) == len(probes):
            file = self._catalogue.folder / self._catalogue.shards[shard].name
            raise DataError(
                f"shard '{file}' is not the file that the catalogue describes: none of {len(probes) + 1} samples "
                "looked at matches its checksum; it was swapped or overwritten, so restore it or pack again"
            )
