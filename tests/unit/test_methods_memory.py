"""The embedding memory against plain float64 loops, and what its form of deep kNN computes from it."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError
from fsl_dist.losses.deep_knn import NO_TERMS, batch_log_sums, neighbour_softmax
from fsl_dist.methods.deep_knn import DeepKNNConfig, NeighbourLoss
from fsl_dist.methods.method import Batch, MethodContext
from fsl_dist.methods.mining import embedding_memory
from fsl_dist.methods.mining.config import MiningConfig
from fsl_dist.methods.mining.embedding_memory import Anchors, EmbeddingMemory, class_ranges
from fsl_dist.methods.mining.in_memory import MemoryMining
from fsl_dist.methods.mining.neighbour_table import write_part
from fsl_dist.samplers.episode import EpisodeConfig
from index.config import IndexConfig

CPU = torch.device("cpu")


@dataclasses.dataclass
class Rows:
    """A training selection, embeddings of its images, and a step's new ones."""

    selection: Selection
    vectors: Tensor
    rows: Tensor
    embeddings: Tensor
    index: IndexConfig = dataclasses.field(default_factory=IndexConfig)

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.selection.sample_labels)

    def memory(self) -> EmbeddingMemory:
        memory = EmbeddingMemory(
            self.selection,
            self.vectors.shape[1],
            group=WorkerGroup(),
            device=CPU,
            index=self.index,
            most_bytes=1e9,
        )
        memory.fill(self.vectors, 0)
        return memory

    def anchors(self) -> Anchors:
        ranges = torch.from_numpy(class_ranges(self.selection))
        return Anchors(self.embeddings, self.rows, ranges[self.rows])

    def distances(self) -> tuple[Tensor, Tensor]:
        """float64 [B, N] squared distances to the memory, and bool [B, N]: of the anchor's class. The step's rows are infinite."""
        squared = (self.embeddings.double()[:, None] - self.vectors.double()).square().sum(-1)
        squared[:, self.rows] = torch.inf
        return squared, self.labels[self.rows][:, None] == self.labels


def make_rows(
    seed: int, *, num: int = 60, num_classes: int = 5, batch: int = 12, dim: int = 8, repeats: bool = False
) -> Rows:
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(num_classes, size=num))
    ids = np.sort(rng.permutation(10 * num)[:num])
    vectors = torch.from_numpy(rng.normal(size=(num, dim))).float()
    embeddings = torch.from_numpy(rng.normal(size=(batch, dim))).float()
    rows = torch.from_numpy(rng.choice(num, batch, replace=repeats))
    return Rows(
        Selection.from_labels(ids, labels),
        functional.normalize(vectors, dim=1),
        rows,
        functional.normalize(embeddings, dim=1),
    )


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), tau=st.sampled_from([0.02, 0.1, 3.0]), block=st.sampled_from([24, 100, 10**6])
)
def test_sums_over_all_rows_are_those_of_a_plain_loop(seed: int, tau: float, block: int) -> None:
    data = make_rows(seed)
    squared, is_same = data.distances()
    log_weights = torch.randn(60, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_memory, "_SCORES_AT_A_TIME", block)
        found = data.memory().sum_all(data.anchors(), tau, log_weights)
    for sums, counts in zip(found, (is_same, ~is_same), strict=True):
        assert sums is not None
        scores = (-squared / tau + log_weights).masked_fill(~counts, -torch.inf)
        expected = scores.logsumexp(1)
        has_any = expected > -torch.inf
        torch.testing.assert_close(
            sums.values[has_any], expected[has_any].float(), rtol=1e-5, atol=2e-6 / tau + 1e-5
        )
        assert (sums.values[~has_any] == NO_TERMS).all()
        means = scores[has_any].softmax(1) @ data.vectors.double()
        torch.testing.assert_close(sums.means[has_any], means.float(), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    num=st.sampled_from([1, 4, 70]),
    same=st.booleans(),
    block=st.sampled_from([24, 100, 10**6]),
)
def test_nearest_rows_are_those_of_a_plain_loop(seed: int, num: int, same: bool, block: int) -> None:
    data = make_rows(seed)
    squared, is_same = data.distances()
    squared = squared.masked_fill(is_same != same, torch.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_memory, "_SCORES_AT_A_TIME", block)
        memory = data.memory()
        rows, found = memory.nearest(data.anchors(), num, same=same)
        vectors = memory.gather(rows)
        weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
        pulls = memory.weighted_sum(rows, weights)
    for anchor in range(len(squared)):
        exists = rows[anchor] >= 0
        order = squared[anchor].argsort()[: int(exists.sum())]
        assert int(exists.sum()) == min(num, int(squared[anchor].isfinite().sum()))
        assert sorted(rows[anchor][exists].tolist()) == sorted(order.tolist())
        assert torch.equal(vectors[anchor][exists], data.vectors[rows[anchor][exists]])
        pull = weights[anchor][exists] @ data.vectors[rows[anchor][exists]]
        torch.testing.assert_close(pulls[anchor], pull, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found[anchor][exists], squared[anchor][rows[anchor][exists]].float(), rtol=1e-5, atol=1e-5
        )


def test_clusters_that_are_all_looked_into_give_what_all_rows_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_rows(3, num=800, num_classes=4, batch=30)
    exact = data.memory()
    data.index = IndexConfig(kind="ivf_flat", nlist=10, nprobe=10)
    clustered = data.memory()
    for memory in (exact, clustered):  # a row that was overwritten is found where it is now
        memory.write(data.rows[:10], -data.embeddings[:10], 1)
    data.rows, data.embeddings = data.rows[10:], data.embeddings[10:]

    def found(memory: EmbeddingMemory, num: int, *, same: bool) -> list[list[int]]:
        return memory.nearest(data.anchors(), num, same=same)[0].sort(1).values.tolist()

    assert found(clustered, 25, same=False) == found(exact, 25, same=False)
    assert found(clustered, 5, same=True) == found(exact, 5, same=True)
    monkeypatch.setattr(embedding_memory, "LARGE_CLASS", 199)  # of about 200 rows each
    assert found(clustered, 5, same=True) == found(exact, 5, same=True)


def test_anchors_amid_their_own_class_still_get_all_the_rows_of_others_that_they_want() -> None:
    data = make_rows(6, num=4000, num_classes=8, batch=20)
    centres = functional.normalize(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    data.vectors = functional.normalize(centres[data.labels] + 0.01 * data.vectors, dim=1)
    data.embeddings = data.vectors[data.rows]
    data.index = IndexConfig(kind="ivf_flat")
    # The nearest clusters hold 4 x 60 rows, all of the anchor's class of 500.
    rows, _ = data.memory().nearest(data.anchors(), 60, same=False)
    assert (rows >= 0).all()


def test_a_few_clusters_find_most_neighbours_of_clustered_rows() -> None:
    data = make_rows(5, num=4000, num_classes=40, batch=40)
    centres = functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    data.vectors = functional.normalize(centres[data.labels] + 0.2 * data.vectors, dim=1)
    data.embeddings = data.vectors[data.rows]
    expected = data.memory().nearest(data.anchors(), 50, same=False)[0]
    data.index = IndexConfig(kind="ivf_flat")
    found = data.memory().nearest(data.anchors(), 50, same=False)[0]
    recall = np.mean([len({*a} & {*b}) / 50 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert recall > 0.7


def test_a_row_named_twice_takes_its_first_embedding_and_later_rows_outlive_a_pass() -> None:
    data = make_rows(7)
    memory = data.memory()
    rows = torch.tensor([4, 9, 4])
    memory.write(rows, data.embeddings[:3], 5)
    assert torch.equal(memory.vectors[[4, 9]], data.embeddings[:2])
    assert memory.age(6) == pytest.approx((58 * 6 + 2 * 1) / 60)
    memory.fill(-data.vectors, 3)  # made at step 3, in effect now
    assert torch.equal(memory.vectors[[4, 9]], data.embeddings[:2])
    assert torch.equal(memory.vectors[5], -data.vectors[5])
    memory.fill(data.vectors, 8)
    assert torch.equal(memory.vectors, data.vectors)


def test_rows_that_do_not_fit_and_kinds_that_cannot_be_overwritten_are_refused() -> None:
    data = make_rows(0)

    def build(most_bytes: float, kind: str) -> None:
        EmbeddingMemory(
            data.selection,
            8,
            group=WorkerGroup(),
            device=CPU,
            index=IndexConfig(kind=kind),  # type: ignore[arg-type]
            most_bytes=most_bytes,
        )

    with pytest.raises(
        RequestError, match=r"mining\.memory_gb=1e-06 is below the 1\.92e-06 .* 60 embeddings of 8"
    ):
        build(1000.0, "flat")
    with pytest.raises(RequestError, match=r"mining\.neighbours=memory .* index\.kind=hnsw cannot"):
        build(1e9, "hnsw")


class _Index:
    """Stands for the embedding pass: it hands out the rows as they are."""

    def __init__(self, data: Rows) -> None:
        self.data, self.dim, self.config = data, data.vectors.shape[1], data.index

    def start_table(self, folder: Path, num_same: int, num_other: int, weights: Path | None = None) -> None:
        assert num_same == num_other == 0
        write_part(folder, 0, 0, self.data.vectors[:25].numpy())
        write_part(folder, 1, 25, self.data.vectors[25:].numpy())

    def finish_table(self, folder: Path) -> None:
        pass


def build_method(
    data: Rows, folder: Path, config: DeepKNNConfig, batch_size: int = 12, power: float = 0.5
) -> MemoryMining:
    @dataclasses.dataclass
    class Catalogue:
        labels: np.ndarray

    labels = np.zeros(int(data.selection.ids.max()) + 1, dtype=np.int64)
    labels[data.selection.ids] = data.selection.sample_labels
    context = MethodContext(
        catalogue=Catalogue(labels),  # type: ignore[arg-type]
        selection=data.selection,
        dataset="data",
        folder=folder,
        seed=0,
        num_workers=1,
        batch_size=batch_size,
        kmeans_runs=1,
        episode=EpisodeConfig(),
        mining=MiningConfig(source="dataset", anchor_power=power),
        device=CPU,
    )
    method = config.build(context)
    assert isinstance(method, MemoryMining)
    method.prepare(0, 0, _Index(data), WorkerGroup())  # type: ignore[arg-type]
    return method


def batch_of(data: Rows) -> Batch:
    ids = data.selection.ids[data.rows.numpy()]
    return Batch(ids, data.labels[data.rows].numpy(), payload=data.rows.numpy())


def plain_loss(config: DeepKNNConfig, data: Rows, embeddings: Tensor) -> Tensor:
    """Loops over float64 rows, the step's own ones replaced by `embeddings`; a row of class c weighs n_c^-0.5."""
    weights = torch.bincount(data.labels).double()[data.labels] ** -0.5
    bank = data.vectors.double().clone()
    first = {}
    for position, row in enumerate(data.rows.tolist()):
        first.setdefault(row, position)
    bank = bank.index_put((torch.tensor(list(first)),), embeddings[list(first.values())])
    terms = []
    for position, row in enumerate(data.rows.tolist()):
        squared = (bank - embeddings[position]).square().sum(1)
        is_same = data.labels == data.labels[row]
        is_same[row] = False
        others = data.labels != data.labels[row]
        order_same, order_other = squared[is_same].argsort(), squared[others].argsort()
        order_same = order_same[: None if config.k_same == "all" else config.k_same]
        order_other = order_other[: None if config.m_other == "all" else config.m_other]
        near, far = squared[is_same][order_same], squared[others][order_other]
        if not len(near) or not len(far):
            continue
        if config.loss == "hinge":
            terms.append((near.sqrt()[:, None] - far.sqrt()[None] + config.margin).clamp_min(0).flatten())
        else:
            same = (weights[is_same][order_same] * (-near / config.temperature).exp()).sum()
            other = (weights[others][order_other] * (-far / config.temperature).exp()).sum()
            terms.append(-(same / (same + other)).log()[None])
    return torch.cat(terms).mean()


FORMS = {
    "all": DeepKNNConfig(),
    "all of the class, a few others": DeepKNNConfig(m_other=7),
    "a few of the class, all others": DeepKNNConfig(k_same=3, temperature=0.3),
    "a few": DeepKNNConfig(k_same=3, m_other=7),
    "more than exist": DeepKNNConfig(k_same=100, m_other=100),
    "hinge": DeepKNNConfig(loss="hinge", k_same=3, m_other=7),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_are_those_of_a_plain_loop(form: str, seed: int, tmp_path: Path) -> None:
    config, data = FORMS[form], make_rows(seed, repeats=seed == 1)
    method = build_method(data, tmp_path, config)
    embeddings = data.embeddings.clone().requires_grad_()
    result = method.loss(embeddings, batch_of(data))
    result.loss.backward()
    exact = data.embeddings.double().requires_grad_()
    expected = plain_loss(config, data, exact)
    expected.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert embeddings.grad is not None
    assert exact.grad is not None
    error = (embeddings.grad - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-4

    method.finish_step(0, [batch_of(data)], [], WorkerGroup())
    assert method.memory is not None
    written = method.memory.vectors[data.rows[0]]
    assert torch.equal(written, data.embeddings[0])


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_all_images_gives_what_batch_mining_gives(form: str, tmp_path: Path) -> None:
    data = make_rows(2, num=20, batch=20)
    config = FORMS[form]
    method = build_method(
        data, tmp_path, config, batch_size=20, power=1.0
    )  # every image once: all weigh alike
    in_memory = method.loss(data.embeddings, batch_of(data))
    loss, _ = NeighbourLoss.neighbour_loss(method, data.embeddings, batch_of(data))
    assert in_memory.loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_anchors_without_a_neighbour_of_either_kind_are_left_out() -> None:
    logs = torch.tensor([0.0, NO_TERMS, 1.0]), torch.tensor([1.0, 0.0, NO_TERMS])
    same = logs[0].clone().requires_grad_()
    loss, share = neighbour_softmax(same, logs[1])
    loss.backward()
    assert loss.item() == pytest.approx(np.log1p(np.e))
    assert share.item() == pytest.approx(1 / (1 + np.e))
    assert same.grad is not None
    assert same.grad[1:].tolist() == [0.0, 0.0]
    nothing, _ = neighbour_softmax(logs[0][1:2], logs[1][1:2])
    assert nothing.item() == 0.0


@pytest.mark.parametrize(("num_same", "num_other"), list(itertools.product([None, 2], [None, 3])))
def test_sums_in_a_batch_are_those_of_a_plain_loop(num_same: int | None, num_other: int | None) -> None:
    data = make_rows(4, batch=16, repeats=True)
    ids, labels = data.rows, data.labels[data.rows]
    found = batch_log_sums(data.embeddings, labels, ids, 0.2, num_same, num_other)
    seen = {row: position for position, row in reversed(list(enumerate(ids.tolist())))}
    for position in range(16):
        squared = (data.embeddings.double() - data.embeddings[position].double()).square().sum(1)
        for sums, num, wanted in zip(found, (num_same, num_other), (True, False), strict=True):
            chosen = [
                squared[place].item()
                for row, place in seen.items()
                if (labels[place] == labels[position]).item() is wanted and row != ids[position]
            ]
            expected = np.exp(-np.sort(chosen)[:num] / 0.2).sum()
            if expected:
                assert sums[position].item() == pytest.approx(np.log(expected), abs=1e-5)
            else:
                assert sums[position].item() < NO_TERMS / 2


@pytest.mark.parametrize("form", ["all", "a few", "hinge"])
def test_embeddings_that_are_not_finite_make_the_loss_so_too(form: str, tmp_path: Path) -> None:
    data = make_rows(0)
    method = build_method(data, tmp_path, FORMS[form])
    broken = data.embeddings.clone()
    broken[3, 0] = torch.nan
    assert not method.loss(broken, batch_of(data)).loss.isfinite()
