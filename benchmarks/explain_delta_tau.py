"""Why a PCN's accuracy bends over Δτ: what another temperature at test time does to base and to novel classes.

    python benchmarks/explain_delta_tau.py RUN …

A class's score is −Σ_z q(z|x) d(x, μ_z) with q a softmax over −d/τ (PCN Eq. 1, 3). A larger τ spreads q to prototypes
further away, so the score of every class sinks, by more if its prototypes are further apart. For each Δτ, the
table has means over draws and RUNs. The first is the share of base and of novel test images that a novel class wins.
The second is how far the best base and novel scores sank since the smallest Δτ. The third is over how many prototypes
the best base and novel class spread an image (the perplexity of q).
"""

import argparse
from pathlib import Path

import numpy as np

from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.methods.prototypes import Prototypes, fit_prototypes
from fsl_dist.metrics.few_shot import draws_of
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_trained


def score(points: np.ndarray, prototypes: Prototypes, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and perplexities of the responsibilities, both float64 [n, classes]."""
    means = prototypes.means.astype(np.float64)
    distances = (
        np.square(points).sum(1)[:, None, None]
        + np.square(means).sum(2)
        - 2 * np.einsum("nd,cmd->ncm", points, means)
    )
    logits = np.where(prototypes.mask, -distances / temperature, -np.inf)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return -(weights * distances).sum(axis=2), np.exp(-(weights * logs).sum(axis=2))


def examine(run: Path, deltas: list[float]) -> np.ndarray:
    """float64 [deltas, 8]: MCA base, MCA novel, wins of novel classes among base and novel images, best scores,
    perplexities."""
    trained = open_trained(run)
    config, splits = trained.config, split_run(trained.catalogue, trained.config)
    assert splits.query is not None
    assert splits.novel is not None
    gallery, queries, novels = (
        open_selection(trained, config, name, selection)
        for name, selection in (
            ("gallery", splits.gallery),
            (splits.query_split, splits.query),
            ("novel", splits.novel),
        )
    )
    seed, settings = config.run.seed, config.evaluation
    vectors = gallery.vectors(0, gallery.num_vectors)
    base = fit_prototypes(
        vectors, gallery.labels, config.base_clusters, seed=seed, epoch=0, starts=settings.kmeans_runs
    )
    tested = queries.vectors(0, queries.num_vectors).astype(np.float64)
    found = []
    all_novel = novels.vectors(0, novels.num_vectors)
    for draw in draws_of(novels.labels, settings, seed=seed):
        support, test = draw.support, draw.test
        novel = fit_prototypes(
            all_novel[support], novels.labels[support], config.novel_clusters, seed=seed, epoch=draw.number
        )
        points = np.concatenate([tested, all_novel[test].astype(np.float64)])
        labels = np.concatenate([queries.labels, novels.labels[test]])
        is_novel = np.arange(len(labels)) >= len(tested)
        rows = []
        for delta in deltas:
            temperature = config.method.temperature + delta
            (to_base, spread_base), (to_novel, spread_novel) = (
                score(points, part, temperature) for part in (base, novel)
            )
            names = np.concatenate([base.labels, novel.labels])
            chosen = names[np.concatenate([to_base, to_novel], axis=1).argmax(axis=1)]
            hits = [
                np.mean([(chosen[labels == label] == label).mean() for label in np.unique(labels[group])])
                for group in (~is_novel, is_novel)
            ]
            wins = np.isin(chosen, novel.labels)
            at = np.arange(len(points))
            rows.append(
                [
                    *hits, wins[~is_novel].mean(), wins[is_novel].mean(), to_base.max(1).mean(), to_novel.max(1).mean(),
                    spread_base[at, to_base.argmax(1)].mean(), spread_novel[at, to_novel.argmax(1)].mean(),
                ]
            )  # fmt: skip
        found.append(rows)
    trained.embedder.source.close()
    return np.mean(found, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    temperature = open_trained(options.runs[0]).config.method.temperature
    deltas = [delta for delta in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0) if temperature + delta > 0]
    table = np.mean([examine(run, deltas) for run in options.runs], axis=0)
    print("| Δτ | MCA base | novel | base images won by a novel class | novel images | best base score sank by | novel | "
          "prototypes a base class uses | novel |")  # fmt: skip
    print("| --- |" + " ---: |" * 8)
    for delta, row in zip(deltas, table, strict=True):
        shares = [f"{100 * value:.1f}" for value in row[:4]]
        sank = [f"{table[0][column] - row[column]:.2f}" for column in (4, 5)]
        print(f"| {delta:+g} | {' | '.join([*shares, *sank, *(f'{value:.2f}' for value in row[6:])])} |")


if __name__ == "__main__":
    main()
