"""A memory with the embeddings of all training images, in which deep kNN searches neighbours while the network changes.

Row i belongs to the i-th image of the training selection, so a class is a range of rows. The rows are distributed
over the workers. Every worker compares all anchors of a step with its own rows, and the results are merged, so that
they do not depend on the number of workers. A step's embeddings overwrite their rows (XBM: Wang et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError
from fsl_dist.losses.deep_knn import NO_TERMS, is_first
from fsl_dist.losses.distances import smallest
from fsl_dist.methods.mining.memory_lists import LARGE_CLASS, MemoryLists
from fsl_dist.samplers.scan import split_evenly
from index.config import IndexConfig

# Block size for the scores of a step's anchors against rows, in numbers: 64 MiB of float32.
_SCORES_AT_A_TIME = 2**24


@dataclass(frozen=True, slots=True)
class Anchors:
    """The images of a step, in the form in which they are compared with the memory."""

    embeddings: Tensor
    """float32 or wider [B, D], without gradient"""
    rows: Tensor
    """int64 [B]: their rows in the memory, which these embeddings replace"""
    ranges: Tensor
    """int64 [B, 2]: first row of each one's class, and one past the last"""

    def classes(self) -> list[tuple[Tensor, int, int]]:
        """(positions among the anchors, first row, one past the last row) of each class."""
        starts, members = self.ranges[:, 0].unique(return_inverse=True)
        by_class = members.argsort(stable=True)
        sizes = torch.bincount(members, minlength=len(starts))
        bounds = self.ranges[by_class[sizes.cumsum(0) - 1]].tolist()
        return [
            (positions, low, high)
            for positions, (low, high) in zip(by_class.split(sizes.tolist()), bounds, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class LogSums:
    """log Σ exp(−d²/τ) over some rows for each anchor, and where those rows pull it."""

    values: Tensor
    """float32 [B], `NO_TERMS` if there is no row"""
    means: Tensor
    """float32 [B, D]: mean of the rows, weighted by their share of the sum"""


def check_memory(
    num_images: int, dim: int, num_workers: int, *, index: IndexConfig, most_bytes: float
) -> None:
    """Raise RequestError where the rows of a worker do not fit into `most_bytes`,
    or `index.kind` cannot overwrite rows."""
    if index.kind not in ("flat", "ivf_flat"):
        raise RequestError(
            f"mining.neighbours=memory overwrites rows, which index.kind={index.kind} cannot (index.kind=flat or "
            "ivf_flat)"
        )
    rows = int(np.diff(split_evenly(num_images, num_workers)).max())
    num_bytes = rows * dim * 4 * (2 if index.kind == "ivf_flat" else 1)
    if num_bytes > most_bytes:
        raise RequestError(
            f"mining.memory_gb={most_bytes / 1e9:g} is below the {num_bytes / 1e9:.3g} that a worker needs for "
            f"its share of {num_images} embeddings of {dim} numbers on workers.num={num_workers} (more workers, a "
            "smaller backbone.embedding_dim, or a larger mining.memory_gb)"
        )


class EmbeddingMemory:
    """This worker's rows of the memory [N, D].

    Args:
        selection: the N training images.
        dim: D.
        group: the workers that share the rows.
        device: where the rows are stored and compared.
        index: `index.*`: kind=flat compares with every row, kind=ivf_flat with those of the nearest clusters.
        most_bytes: maximum size per worker.

    Raises:
        RequestError: the rows do not fit, or `index.kind` is another.
    """

    def __init__(
        self,
        selection: Selection,
        dim: int,
        *,
        group: WorkerGroup,
        device: torch.device,
        index: IndexConfig,
        most_bytes: float,
    ) -> None:
        self.selection = selection
        self.group = group
        self.device = device
        self.edges = split_evenly(len(selection), group.world_size)
        self.start, self.stop = int(self.edges[group.rank]), int(self.edges[group.rank + 1])
        check_memory(len(selection), dim, group.world_size, index=index, most_bytes=most_bytes)
        self.vectors = torch.zeros(self.stop - self.start, dim, device=device)
        """float32 [n, D]: the rows from `start` on"""
        self._squares = torch.zeros(self.stop - self.start, device=device)  # ‖row‖²
        self.written = torch.full((self.stop - self.start,), -1, dtype=torch.int32)
        """int32 [n]: optimizer step whose parameters each row was embedded with"""
        self.lists = MemoryLists(index, group, len(selection)) if index.kind == "ivf_flat" else None

    def fill(self, vectors: Tensor, step: int) -> None:
        """Write this worker's rows (float32 [n, D]) of a pass at `step`; rows of a later step are kept."""
        is_older = self.written < step
        self.vectors[is_older] = vectors.to(self.device)[is_older.to(vectors.device)]
        self.written[is_older] = step
        self._squares = self.vectors.square().sum(1)
        self.sort_into_lists(step)

    def sort_into_lists(self, seed: int) -> None:
        """Rebuild the clusters of an ivf_flat index from the current rows. Collective."""
        if self.lists is not None:
            self.lists.build(self.vectors.cpu().numpy(), self.start, seed)

    def write(self, rows: Tensor, embeddings: Tensor, step: int) -> None:
        """Overwrite rows (int64 [B]) with embeddings (float32 [B, D]) made at `step`;
        of a row named twice the first counts."""
        counts = is_first(rows) & (rows >= self.start) & (rows < self.stop)
        own, latest = rows[counts] - self.start, embeddings[counts].to(self.vectors.dtype)
        self.vectors[own] = latest
        self._squares[own] = latest.square().sum(1)
        self.written[own.cpu()] = step
        if self.lists is not None and len(own):
            self.lists.update(own.cpu().numpy(), latest.cpu().numpy())

    def age(self, step: int) -> float:
        """Mean number of steps since a row was written, over the rows of all workers. Collective."""
        total = self.group.sum_(self.written.sum(dtype=torch.float64).to(self.device))
        return step - float(total) / len(self.selection)

    def sum_all(
        self,
        anchors: Anchors,
        temperature: float,
        log_weights: Tensor,
        *,
        same: bool = True,
        other: bool = True,
    ) -> tuple[LogSums | None, LogSums | None]:
        """Sum over all rows of each anchor's class, and over all others, excluding the anchors' own rows. Collective.

        Costs one product of the anchors with the requested rows, and one with their shares of the sum.

        Args:
            anchors: the images of the step.
            temperature: τ, above 0, in units of squared distance.
            log_weights: float32 [N], logarithm of each row's weight.
            same: whether to compute the sums over the anchors' classes.
            other: whether to compute those over other classes.

        Returns:
            The sums over the anchors' classes and over all others; None for one that was not requested.
        """
        if not same and not other:
            return None, None
        own_same, own_other = _Running(anchors.embeddings), _Running(anchors.embeddings)
        classes = anchors.classes()
        for first, last in self._blocks(len(anchors.rows)):
            scores = self._scores(anchors, first, last, temperature, log_weights) if other else None
            for positions, low, high in classes:
                low, high = max(low, first), min(high, last)
                if low >= high:
                    continue
                columns = slice(low - first, high - first)
                if same:
                    own = (
                        self._scores(_some(anchors, positions), low, high, temperature, log_weights)
                        if scores is None
                        else scores[positions, columns]
                    )
                    own_same.add(own, self._rows(low, high, anchors), positions)
                if scores is not None:
                    scores[positions, columns] = -torch.inf
            if scores is not None:
                own_other.add(scores, self._rows(first, last, anchors))
        offset = anchors.embeddings.square().sum(1) / temperature
        found = [
            self._merge(running, offset) if wanted else None
            for running, wanted in ((own_same, same), (own_other, other))
        ]
        return found[0], found[1]

    def nearest(self, anchors: Anchors, num: int, *, same: bool) -> tuple[Tensor, Tensor]:
        """Find the `num` nearest rows of each anchor's class, or of all others. Collective.

        The anchors' own rows are excluded. With ivf_flat, rows of other classes, and of classes of more than
        `LARGE_CLASS` rows, are searched only in the nearest clusters.

        Returns:
            Rows int64 [B, num] in any order, −1 if there are fewer; and squared distances float32 [B, num], 0 where
            there is no row.
        """
        if same:
            distances, rows = self._nearest_of_class(anchors, num)
        elif self.lists is None:
            distances, rows = self._nearest_of_others(anchors, num)
        else:
            distances, rows = self.lists.search(anchors, num, self.device, same=False)
        if self.group.world_size > 1:
            distances, rows = self._merge_nearest(distances, rows, num)
        return rows, distances.clamp_min(0.0).masked_fill(rows < 0, 0.0)

    def _nearest_of_class(self, anchors: Anchors, num: int) -> tuple[Tensor, Tensor]:
        """This worker's nearest rows of each anchor's class: (distances² or inf, rows or −1), [B, num]."""
        best, rows = self._nothing(anchors, num)
        large: list[Tensor] = []
        for positions, low, high in anchors.classes():
            if self.lists is not None and high - low > LARGE_CLASS:
                large.append(positions)
                continue
            own = _some(anchors, positions)
            for first, last in self._blocks(len(positions), low, high):
                distances = self._scores(own, first, last).neg_()
                if (
                    first == low and last == high
                ):  # nothing to merge with: a fifth of the time of small classes
                    near, places = smallest(distances, num)
                    best[positions, : near.shape[1]] = near
                    rows[positions, : near.shape[1]] = (places + first).masked_fill_(near == torch.inf, -1)
                else:
                    best[positions], rows[positions] = _keep_nearest(
                        best[positions], rows[positions], distances, first
                    )
        best += anchors.embeddings.square().sum(1, keepdim=True)
        if self.lists is not None and large:
            places = torch.cat(large)
            own = _some(anchors, places)
            near, rows[places] = self.lists.search(own, num, self.device, same=True)
            best[places] = near.to(best.dtype)
        return best, rows

    def _nearest_of_others(self, anchors: Anchors, num: int) -> tuple[Tensor, Tensor]:
        """This worker's nearest rows of other classes, in the same form."""
        best, rows = self._nothing(anchors, num)
        classes = anchors.classes()
        for first, last in self._blocks(len(anchors.rows)):
            distances = self._scores(anchors, first, last).neg_()
            for positions, low, high in classes:
                low, high = max(low, first) - first, min(high, last) - first
                if low < high:
                    distances[positions, low:high] = torch.inf
            best, rows = _keep_nearest(best, rows, distances, first)
        return best + anchors.embeddings.square().sum(1, keepdim=True), rows

    def _nothing(self, anchors: Anchors, num: int) -> tuple[Tensor, Tensor]:
        best = anchors.embeddings.new_full((len(anchors.rows), num), torch.inf)
        return best, torch.full(best.shape, -1, dtype=torch.int64, device=self.device)

    def _blocks(self, num_anchors: int, low: int = 0, high: int | None = None) -> list[tuple[int, int]]:
        """This worker's rows from `low` to before `high`, in blocks that fit in memory: (first, last)."""
        low, high = max(low, self.start), min(self.stop if high is None else high, self.stop)
        width = max(1, _SCORES_AT_A_TIME // max(num_anchors, 1))
        return [(first, min(first + width, high)) for first in range(low, high, width)]

    def _rows(self, first: int, last: int, anchors: Anchors) -> Tensor:
        """This worker's rows `first` … `last` − 1, in the anchors' precision: [n, D]."""
        return self.vectors[first - self.start : last - self.start].to(anchors.embeddings.dtype)

    def _scores(
        self,
        anchors: Anchors,
        first: int,
        last: int,
        temperature: float = 1.0,
        log_weights: Tensor | None = None,
    ) -> Tensor:
        """(2 a·m − ‖m‖²) / τ + log weight of anchors and the rows from `first` to before `last`: [B, n].

        −∞ for the anchors' own rows.
        """
        bias = (
            self._squares[first - self.start : last - self.start].to(anchors.embeddings.dtype) / -temperature
        )
        if log_weights is not None:
            bias += log_weights[first:last]
        inside = (anchors.rows >= first) & (anchors.rows < last)
        bias[anchors.rows[inside] - first] = -torch.inf
        return torch.addmm(bias, anchors.embeddings * (2.0 / temperature), self._rows(first, last, anchors).T)

    def _merge(self, running: _Running, offset: Tensor) -> LogSums:
        """All workers' sums as one. offset: what every score lacks, [B]."""
        values, means = running.result()
        if self.group.world_size > 1:
            parts = self.group.gather_equal(torch.cat([values[:, None], means], dim=1))  # [W, B, 1 + D]
            logs = parts[:, :, 0]
            values = logs.logsumexp(0)
            shares = (logs - values.clamp_min(NO_TERMS)).exp()
            means = (shares[:, :, None] * parts[:, :, 1:]).sum(0)
        return LogSums((values - offset).clamp_min(NO_TERMS), means)

    def _merge_nearest(self, distances: Tensor, rows: Tensor, num: int) -> tuple[Tensor, Tensor]:
        all_distances = self.group.gather_equal(distances).permute(1, 0, 2).flatten(1)
        all_rows = self.group.gather_equal(rows).permute(1, 0, 2).flatten(1)
        best, places = smallest(all_distances, num)
        return best, all_rows.gather(1, places)

    def gather(self, rows: Tensor) -> Tensor:
        """The vectors of `rows` (int64 [B, k], −1 = none): float32 [B, k, D], on every worker. Collective."""
        is_own = (rows >= self.start) & (rows < self.stop)
        if self.group.world_size == 1:
            return torch.nn.functional.embedding(rows.clamp_min(0), self.vectors)
        found = torch.zeros(*rows.shape, self.vectors.shape[1], device=self.device)
        found[is_own] = self.vectors[rows[is_own] - self.start]
        return self.group.sum_(found)

    def weighted_sum(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Σ weight · vector over `rows` (int64 [B, k], −1 = none): float32 [B, D], on every worker. Collective.

        Reads each row once, whereas `gather` copies k rows for each anchor: for k = 1,000 a fifth of a step.
        """
        is_own = (rows >= self.start) & (rows < self.stop)
        places = (rows - self.start).where(is_own, 0)
        weights = weights.to(self.vectors.dtype).where(is_own, 0.0).contiguous()
        if len(self.vectors) == 0:  # more workers than rows
            return self.group.sum_(torch.zeros(len(rows), self.vectors.shape[1], device=self.device))
        return self.group.sum_(
            torch.nn.functional.embedding_bag(places, self.vectors, per_sample_weights=weights, mode="sum")
        )

    def state(self) -> dict[str, Tensor | str | int]:
        """The whole memory on the first worker, for a checkpoint; empty on the others. Collective."""
        sizes = np.diff(self.edges).tolist()
        vectors = self.group.gather_to_first(self.vectors, sizes)
        written = self.group.gather_to_first(self.written[:, None].to(self.device), sizes)
        if vectors is None or written is None:
            return {}
        return {"memory": vectors, "memory_written": written[:, 0]}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Restore this worker's rows from the result of `state`, for any number of workers. Collective."""
        vectors, written = state["memory"], state["memory_written"]
        assert isinstance(vectors, Tensor)
        assert isinstance(written, Tensor)
        self.vectors.copy_(vectors[self.start : self.stop])
        self._squares = self.vectors.square().sum(1)
        self.written.copy_(written[self.start : self.stop])


class _Running:
    """Running log-sums over blocks of rows: a maximum, a sum and a weighted sum (Milakov & Gimelshein 2018)."""

    def __init__(self, embeddings: Tensor) -> None:
        self.top = embeddings.new_full((len(embeddings),), -torch.inf)
        self.total = embeddings.new_zeros(len(embeddings))
        self.weighted = torch.zeros_like(embeddings)

    def add(self, scores: Tensor, vectors: Tensor, positions: Tensor | None = None) -> None:
        """Add rows `vectors` [n, D] with `scores` [b, n], which it spoils,
        to the anchors at `positions` (None: all)."""
        here = slice(None) if positions is None else positions
        before = self.top[here]
        top = torch.maximum(before, scores.amax(1))
        shift = top.masked_fill(top.isinf(), 0.0)
        weights = scores.sub_(shift[:, None]).exp_()
        fade = (before - shift).exp()
        self.top[here] = top
        self.total[here] = self.total[here] * fade + weights.sum(1)
        self.weighted[here] = self.weighted[here] * fade[:, None] + weights @ vectors

    def result(self) -> tuple[Tensor, Tensor]:
        """log of the sums [B], −∞ without rows, and the weighted means [B, D]."""
        return self.top + self.total.log(), self.weighted / self.total.clamp_min(1e-30)[:, None]


def _some(anchors: Anchors, positions: Tensor) -> Anchors:
    return Anchors(anchors.embeddings[positions], anchors.rows, anchors.ranges[positions])


def _keep_nearest(best: Tensor, rows: Tensor, distances: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The nearest of those found before (`best`, `rows` [b, k]) and of `distances` [b, n] to rows from `first` on."""
    num = best.shape[1]
    near, places = smallest(distances, num)
    found = (places + first).masked_fill_(near == torch.inf, -1)
    near, places = smallest(torch.cat([best, near], dim=1), num)
    return near, torch.cat([rows, found], dim=1).gather(1, places)


def class_ranges(selection: Selection) -> NDArray[np.int64]:
    """First row of each image's class, and one past the last: int64 [N, 2]."""
    bounds = np.stack([selection.starts[:-1], selection.starts[1:]], axis=1)
    return np.repeat(bounds, selection.counts, axis=0)
