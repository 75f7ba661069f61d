"""The rows of the comparison: what a user would do with a folder of images, and `fit`."""

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.practice import batches, objectives
from benchmarks.practice.automl import run_automl
from benchmarks.practice.backbone import DIM
from benchmarks.practice.fit_row import run_fit
from benchmarks.practice.outcome import Job, Outcome, Result
from benchmarks.practice.parts import Part, Prepared
from benchmarks.practice.scores import Head, Labels, Vectors, fit_knn, fit_logistic, fit_means, score
from benchmarks.practice.sets import PracticeSet
from benchmarks.practice.spent import Spent, stopwatch
from benchmarks.practice.training import Sampler, Tuned, fine_tune

PLAIN_LAST, PLAIN_WHOLE = "fine-tuning, last blocks", "fine-tuning, whole network"

FitHead = Callable[[Vectors, Labels, Vectors, Labels], Head]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to a classifier."""

    name: str
    run: Callable[[Job], Outcome]
    learns: Literal["", "last", "whole"] = ""
    """the blocks that learn, by the set's learning rates for these; empty where there is no learning rate"""
    is_seeded: bool = True
    """whether two seeds may differ; a row that cannot has one run"""
    needs: tuple[str, ...] = ()
    """distributions that must be installed"""
    budget_of: str = ""
    """the row whose seconds this one is given; empty where it is given images"""
    least_s: float = 0.0
    """seconds that this one is given at least"""
    with_tuning: bool = False
    """whether these seconds include the other row's tuning"""

    def rates_on(self, chosen: PracticeSet) -> tuple[float, ...]:
        """Learning rates that are tried with seed 0; 0 alone for a row without one."""
        return {"": (0.0,), "last": chosen.rates, "whole": chosen.whole_rates}[self.learns]

    @property
    def missing(self) -> str:
        """Why the row cannot run here; empty where it can."""
        for name in self.needs:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return f"{name} is not installed"
        return ""


def _frozen(fit_head: FitHead, job: Job) -> Outcome:
    """A head on the frozen network's features."""
    prepared = job.prepared

    def features_of(part: Part) -> NDArray[np.float32]:
        return prepared.features[part.rows]

    setup = prepared.feature_time
    read_clock = stopwatch()
    head = _fit_on(fit_head, features_of, prepared)
    return Outcome(read_clock(), 0, {"": _result(head, features_of, prepared)}, setup)


def _fine_tuned(
    make_objective: Callable[[int], nn.Module],
    sampler: Sampler,
    heads: tuple[str, ...],
    job: Job,
    *,
    is_whole: bool = False,
) -> Outcome:
    """A network fine-tuned by a loss, scored by `heads` of its embeddings, the row's own first."""
    prepared = job.prepared
    tuned = fine_tune(
        prepared,
        functools.partial(make_objective, prepared.classes),
        sampler,
        is_whole=is_whole,
        rate=job.rate,
        seed=job.seed,
    )
    embeddings = functools.cache(lambda part_name: tuned.embed(getattr(prepared, part_name)))

    def embed_part(part: Part) -> NDArray[np.float32]:
        return embeddings(next(name for name in ("train", "val", "test") if getattr(prepared, name) is part))

    results = {}
    for name in heads:
        head = (
            _softmax(tuned, embed_part, prepared)
            if name == "softmax"
            else _fit_on({"kNN": fit_knn, "class means": fit_means}[name], embed_part, prepared)
        )
        results[name] = _result(head, embed_part, prepared)
    return Outcome(tuned.spent, tuned.images, results, Spent() if is_whole else prepared.activation_time)


def _fit_on(fit_head: FitHead, vectors_of: Callable[[Part], Vectors], prepared: Prepared) -> Head:
    train, val = prepared.train, prepared.val
    return fit_head(vectors_of(train), train.labels, vectors_of(val), val.labels)


def _softmax(tuned: Tuned, vectors_of: Callable[[Part], Vectors], prepared: Prepared) -> Head:
    """The classifier that was trained along."""
    classifier = tuned.objective.classifier
    assert isinstance(classifier, nn.Linear)
    assert classifier.in_features == DIM

    def predict(vectors: Vectors) -> Labels:
        with torch.no_grad():
            return classifier(torch.from_numpy(vectors)).argmax(1).numpy()

    return Head(score(predict(vectors_of(prepared.val)), prepared.val.labels), "", predict)


def _result(head: Head, vectors_of: Callable[[Part], Vectors], prepared: Prepared) -> Result:
    """The head with its score on test, which is computed when it is asked for."""
    test = prepared.test
    return Result(head.setting, head.val, lambda: score(head.predict(vectors_of(test)), test.labels))


def _last(
    name: str,
    make_objective: Callable[[int], nn.Module],
    sampler: Sampler,
    heads: tuple[str, ...],
    needs: tuple[str, ...] = (),
) -> Row:
    return Row(name, functools.partial(_fine_tuned, make_objective, sampler, heads), "last", needs=needs)


_PML = ("pytorch-metric-learning",)
_SOFTMAX = ("softmax", "kNN")

ROWS = {
    row.name: row
    for row in (
        Row("frozen, cosine kNN", functools.partial(_frozen, fit_knn), is_seeded=False),
        Row("frozen, class means", functools.partial(_frozen, fit_means), is_seeded=False),
        Row("frozen, logistic regression", functools.partial(_frozen, fit_logistic), is_seeded=False),
        _last(PLAIN_LAST, objectives.CrossEntropy, batches.shuffled, _SOFTMAX),
        _last(f"balanced {PLAIN_LAST}", objectives.CrossEntropy, batches.balanced, _SOFTMAX),
        _last("triplets, last blocks", lambda _: objectives.triplets(), batches.by_class, ("kNN",), _PML),
        _last("SupCon, last blocks", lambda _: objectives.supervised_contrastive(), batches.by_class, ("kNN",), _PML),
        _last("ProxyAnchor, last blocks", objectives.proxy_anchor, batches.by_class, ("kNN",), _PML),
        _last("prototypes, last blocks", lambda _: objectives.Episodes(), batches.by_class, ("class means",)),
        Row("frozen, FLAML", run_automl, needs=("FLAML", "lightgbm", "xgboost"), budget_of=PLAIN_LAST, with_tuning=True),
        Row(
            PLAIN_WHOLE,
            functools.partial(_fine_tuned, objectives.CrossEntropy, batches.shuffled, _SOFTMAX, is_whole=True),
            "whole",
        ),
        Row("fsl_dist.fit", run_fit, budget_of=PLAIN_WHOLE, least_s=120.0),
    )
}  # fmt: skip
