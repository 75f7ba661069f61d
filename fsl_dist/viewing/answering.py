"""The classes of an image as `predict` ranks them, with calibrated confidence, fast enough for one image at a time."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.selection import Selection
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.evaluation.run_head import open_head
from fsl_dist.heads.fitting import Embedded, Head, Neighbours, to_probabilities, vote_scores
from fsl_dist.heads.joining import BaseMeans, join_novel
from fsl_dist.methods.prototypes import Prototypes, fit_prototypes, join
from fsl_dist.metrics.calibration import fit_temperature
from fsl_dist.metrics.few_shot import positions_among
from fsl_dist.metrics.few_shot_knn import Nearest, find_nearest, join_nearest
from fsl_dist.metrics.prototypes import prototype_scores
from fsl_dist.predicting import ScoredClass, base_prototypes, open_added
from fsl_dist.training.splits import RunSplits
from fsl_dist.training.trained import TrainedRun
from index import ShardedIndex

Novel = Mapping[str, NDArray[np.float32]]
"""embeddings of each novel class's images by its name, float32 [n_c, dim]"""

# A temperature is one number: more images than these change it little.
_MOST_VALIDATION = 2000


class Answerer:
    """Ranks the classes of a run for embeddings.

    The order is that of `predict`. The confidence is calibrated by a temperature on validation images: a head has
    its own, prototypes and votes are calibrated here. A vote only ranks the classes of the nearest training images
    and of the novel classes; the rest of the probability belongs to the others.
    """

    def __init__(self, trained: TrainedRun, gallery: ShardedIndex, splits: RunSplits) -> None:
        self._trained, self._gallery = trained, gallery
        self._added: dict[str, NDArray[np.float32]] = {one.name: one.vectors for one in open_added(trained)}
        self._classes = splits.gallery.labels
        self._head: tuple[Head, Embedded] | None = open_head(trained)
        self._means: BaseMeans | None = None
        traits = trained.config.method.traits.prototypes
        self._traits = None if self._head is not None else traits
        self._prototypes = base_prototypes(trained) if self._traits else None
        self.num_validation = 0
        """images that the confidence was calibrated on; 0 if a head has its temperature, or if there are none"""
        self._temperature = 1.0
        if self._head is None:
            self._calibrate(splits)

    @property
    def name(self) -> str:
        """What answers, such as `head logistic c=0.1`, `prototypes` or `vote of 5 neighbours`."""
        if self._head is not None:
            return f"head {self._head[0].config.name}"
        return "prototypes" if self._traits else f"vote of {self._k_p} neighbours"

    @property
    def is_calibrated(self) -> bool:
        """Whether the confidence was calibrated on validation images."""
        return self._head is not None or self.num_validation > 0

    @property
    def known_names(self) -> set[str]:
        """Names of the classes that the run was trained on and of those that were added to it."""
        names = self._trained.catalogue.class_names
        return {names[label] for label in self._classes.tolist()} | set(self._added)

    def rank(self, vector: NDArray[np.float32], novel: Novel, k: int) -> list[ScoredClass]:
        """The `k` best classes of one image, best first.

        Args:
            vector: float32 [dim], its embedding.
            novel: further classes that are known by a few images.
            k: at most this many classes.
        """
        names = self._trained.catalogue.class_names
        known = {**self._added, **novel}
        labels, probabilities = self._probabilities(vector[None], list(known.values()))
        order = np.lexsort((labels, -probabilities[0]))
        every = [*names, *known]
        return [
            ScoredClass(
                every[labels[place]], float(probabilities[0, place]), int(labels[place]) >= len(names)
            )
            for place in order[:k].tolist()
            if probabilities[0, place] > 0
        ]

    @property
    def _k_p(self) -> int:
        return min(self._trained.config.validation_k_p, self._gallery.num_vectors)

    def _probabilities(
        self, vectors: NDArray[np.float32], novel: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(labels int64 [C], probabilities float64 [n, C]); 0 for a class without evidence."""
        first = len(self._trained.catalogue.class_names)
        of_novel = first + np.arange(len(novel))
        if self._head is not None:
            head, train = self._head
            return np.concatenate([head.classes, of_novel]), self._by_head(head, train, vectors, novel)
        support = np.concatenate([np.empty((0, vectors.shape[1]), np.float32), *novel])
        support_labels = np.repeat(of_novel, [len(images) for images in novel])
        if self._prototypes is not None:
            prototypes = self._prototypes
            if novel:
                prototypes = join(prototypes, self._fit(support, support_labels, is_novel=True))
            scores = self._prototype_scores(vectors, prototypes)
            return prototypes.labels, to_probabilities(scores, self._temperature)
        nearest = self._vote(vectors)
        if novel:
            near = find_nearest(vectors, support, support_labels, self._k_p, self._gallery.metric)
            nearest = join_nearest(nearest, near)
        probabilities = to_probabilities(vote_scores(nearest, self._k_p, nearest.classes), self._temperature)
        return nearest.classes, np.where(np.isfinite(nearest.of_class), probabilities, 0.0)

    def _by_head(
        self, head: Head, train: Embedded, vectors: NDArray[np.float32], novel: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float64]:
        logits = self._trained.embedder.classify(vectors) if head.config.kind == "softmax" else None
        if novel:
            self._means = self._means or BaseMeans.fit(train, head.classes)
            return join_novel(head, self._means, novel, vectors, logits)
        model = head.model
        is_same_space = isinstance(model, Neighbours) and model.transform is None
        if is_same_space and head.config.metric == self._gallery.metric:
            # The index searches 100,000 vectors in a tenth of the time.
            nearest = self._vote(vectors, head.config.k_p)
            scores = vote_scores(nearest, head.config.k_p, head.classes)
            return to_probabilities(scores, head.config.temperature)
        return head.probabilities(vectors, logits)

    def _vote(
        self, vectors: NDArray[np.float32], k: int = 0, query_ids: NDArray[np.int64] | None = None
    ) -> Nearest:
        """The nearest training images by the index; a class without one among them is infinitely far.

        Classes with a vote precede all others in `vote_scores`, so their probabilities are exact.
        """
        found = self._gallery.search(vectors, k or self._k_p, query_ids=query_ids)
        labels = self._gallery.labels_of(found.ids)
        costs = found.exact_distances * (1.0 if self._gallery.metric == "l2" else -1.0)
        of_class = np.full((len(vectors), len(self._classes)), np.inf)
        row, place = np.nonzero(found.ids >= 0)
        columns = positions_among(labels[row, place], self._classes)
        np.minimum.at(of_class, (row, columns), costs[row, place])
        return Nearest(labels, costs, self._classes, of_class)

    def _fit(self, vectors: NDArray[np.float32], labels: NDArray[np.int64], *, is_novel: bool) -> Prototypes:
        config = self._trained.config
        clusters = config.novel_clusters if is_novel else config.base_clusters
        starts = config.evaluation.kmeans_runs
        return fit_prototypes(vectors, labels, clusters, seed=config.run.seed, epoch=0, starts=starts)

    def _prototype_scores(self, vectors: NDArray[np.float32], prototypes: Prototypes) -> NDArray[np.float64]:
        assert self._traits is not None
        return prototype_scores(vectors, prototypes, self._traits.temperature)

    def _calibrate(self, splits: RunSplits) -> None:
        """Fit the temperature on the images of early stopping, each without itself among the training images."""
        stop = splits.stop
        if stop is None or len(stop) == 0:
            return
        validation = validation_part(self._trained, self._gallery, stop)
        if self._prototypes is not None:
            prototypes, is_left = self._prototypes, ~np.isin(self._gallery.ids, stop.ids)
            if not is_left.all() and is_left.any():
                vectors = np.asarray(self._gallery.vectors(0, self._gallery.num_vectors))[is_left]
                prototypes = self._fit(vectors, self._gallery.labels[is_left], is_novel=False)
            scores = self._prototype_scores(validation.vectors, prototypes)
            labels = prototypes.labels
        else:
            nearest = self._vote(validation.vectors, query_ids=validation.ids)
            scores, labels = vote_scores(nearest, self._k_p, nearest.classes), nearest.classes
        positions = positions_among(validation.labels, labels)
        known = positions >= 0
        self.num_validation = int(known.sum())
        self._temperature = fit_temperature(scores[known], positions[known])


def validation_part(trained: TrainedRun, gallery: ShardedIndex, stop: Selection) -> Embedded:
    """Embeddings of the images of early stopping, at most 2,000, evenly spread over the classes.

    Those that were held out of the train split are in the gallery; a val split has an index of its own under
    RUN/evaluation.
    """
    rows = np.unique(np.linspace(0, len(stop) - 1, min(len(stop), _MOST_VALIDATION)).astype(np.int64))
    ids = stop.ids[rows]
    if np.isin(ids, gallery.ids).all():
        order = np.argsort(gallery.ids)
        places = order[np.searchsorted(gallery.ids, ids, sorter=order)]
        vectors = gallery.vectors(0, gallery.num_vectors, as_given=True)[places]
        return Embedded(ids, vectors, gallery.labels[places])
    index = open_selection(trained, trained.config, "val", stop)
    vectors = index.vectors(0, index.num_vectors, as_given=True)[rows]
    return Embedded(index.ids[rows], vectors, index.labels[rows])
