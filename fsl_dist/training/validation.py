"""The score that stops a run, on images that are not trained on: prototypes, kNN, the classifier, or clusters."""

import dataclasses
import json
from pathlib import Path

import torch

from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.distributed import WorkerGroup
from fsl_dist.embedder import Embedder, SelectionIndex
from fsl_dist.methods.method import Method
from fsl_dist.metrics.class_scores import Repeated, rank_targets
from fsl_dist.metrics.clustering import score_clusters
from fsl_dist.metrics.few_shot import group_scores, positions_among
from fsl_dist.metrics.knn import count_right_inside, score_knn
from fsl_dist.metrics.prototypes import evaluate_prototypes
from fsl_dist.metrics.standard_error import ScoredImages
from fsl_dist.training.splits import RunSplits
from index.base.files import Owner


class Validation:
    """Scores the embedding at a step on the selection for early stopping."""

    def __init__(
        self,
        config: RunConfig,
        catalogue: Catalogue,
        splits: RunSplits,
        method: Method,
        embedder: Embedder,
        train_index: SelectionIndex,
        owner: Owner | None,
    ) -> None:
        self.config = config
        self.splits = splits
        self.embedder = embedder
        self.train_index = train_index
        self.device = embedder.device
        self.stop_index = None
        if splits.stop is not None:
            self.stop_index = SelectionIndex(
                embedder,
                catalogue,
                splits.stop,
                Path(config.run.dir) / "index" / "stop",
                group=train_index.group,
                config=config.index,
                owner=owner,
            )
        self.traits = config.method.traits
        self.of_method = method.validation(splits.stop) if splits.stop else None
        self._is_counted = False

    def measure_train(self) -> dict[str, float]:
        """`knn/train_acc@K_p`: accuracy of each training image by the vote of its K_p nearest others. Collective.

        Each worker searches for the images that it embedded.
        """
        index, share, k_ps = self.train_index.open(), self.train_index.share(), self.config.evaluation.k_p
        right = torch.from_numpy(count_right_inside(index, share, k_ps)).to(self.device)
        shares = self.train_index.group.sum_(right).double() / index.num_vectors
        return {f"knn/train_acc@{k_p}": value for k_p, value in zip(k_ps, shares.tolist(), strict=True)}

    def measure(self) -> dict[str, float]:
        """The validation metrics of the stop metric's family, the same on every worker. Collective.

        The first worker scores; embedding, the expensive part, is shared by all.
        """
        assert self.stop_index is not None
        self.stop_index.move_to(self.train_index.parameters)
        group = self.train_index.group
        self._write_counts(group)
        if self.config.stops_by_clusters:
            return self._measure_clusters(group)
        if self.traits.has_classifier and not self.config.stop_metric.startswith("knn/"):
            return self._measure_classifier(group)
        own = self._measure_own(group)
        if self.config.stop_metric in self.traits.own_metrics:
            return own
        gallery, queries = self.train_index.open(), self.stop_index.open()
        metrics: dict[str, float] = {}
        if group.is_first:
            vectors, labels = queries.vectors(0, queries.num_vectors), queries.labels
            if self.traits.prototypes is not None:
                found = evaluate_prototypes(
                    gallery.vectors(0, gallery.num_vectors),
                    gallery.labels,
                    vectors,
                    labels,
                    None,
                    None,
                    base_clusters=self.config.base_clusters,
                    novel_clusters=self.config.novel_clusters,
                    temperature=self.traits.prototypes.temperature,
                    config=dataclasses.replace(self.config.evaluation, delta_tau=(0.0,)),
                    seed=self.config.run.seed,
                )
                metrics = {
                    name: float(value) for name, value in found.items() if not isinstance(value, Repeated)
                }
            else:
                metrics = score_knn(gallery, vectors, labels, self.config.evaluation.k_p) | own
        return json.loads(group.share_text(json.dumps(metrics)))

    def _write_counts(self, group: WorkerGroup) -> None:
        """Record once the number of validation images of each class, from which a score's standard error follows."""
        if self._is_counted or not group.is_first:
            return
        assert self.splits.stop is not None
        stop, train = self.splits.stop, self.splits.train
        trained = dict(zip(train.labels.tolist(), train.counts.tolist(), strict=True))
        images = ScoredImages(
            tuple(stop.counts.tolist()), tuple(trained.get(label, 0) for label in stop.labels.tolist())
        )
        run = Path(self.config.run.dir)
        if ScoredImages.read(run) != images:
            images.write(run)
        self._is_counted = True

    def _measure_classifier(self, group: WorkerGroup) -> dict[str, float]:
        """Scores of the network's own classifier; no training image is embedded for them. Collective."""
        assert self.stop_index is not None
        queries = self.stop_index.open()
        metrics: dict[str, float] = {}
        if group.is_first:
            logits = self.embedder.classify(queries.vectors(0, queries.num_vectors))
            targets = positions_among(queries.labels, self.splits.train.labels)
            metrics = group_scores("base", rank_targets(logits, targets), queries.labels)
        return json.loads(group.share_text(json.dumps(metrics)))

    def _measure_clusters(self, group: WorkerGroup) -> dict[str, float]:
        """Scores of one k-means run with as many clusters as classes; no training image is embedded. Collective.

        Every validation starts from the same seed, as in the authors' scripts.
        """
        assert self.stop_index is not None
        index = self.stop_index.open()
        metrics: dict[str, float] = {}
        if group.is_first:
            settings = dataclasses.replace(self.config.evaluation, clustering_runs=1, num_clusters=0)
            found = score_clusters("kmeans", index, settings, seed=self.config.run.seed)
            metrics = {name: value.mean for name, value in found.items()}
        return json.loads(group.share_text(json.dumps(metrics)))

    def _measure_own(self, group: WorkerGroup) -> dict[str, float]:
        """The method's own metrics of the validation images, the same on every worker. Collective."""
        if self.of_method is None:
            return {}
        assert self.stop_index is not None
        queries = self.stop_index.open()
        metrics = self.of_method(queries.vectors(0, queries.num_vectors)) if group.is_first else {}
        return json.loads(group.share_text(json.dumps(metrics)))
