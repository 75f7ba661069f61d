"""Numerically stable Euclidean distances: in float32 at least, never by a plain product on uncentred data."""

import numpy as np
import torch
from torch import Tensor

# Pairs times dimensions up to which direct differences are faster than the some 15 small operations around a product.
_DIRECT_TERMS = 2**18


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in one dtype: the widest among them, float32 at the least (bf16 becomes float32)."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def without_autocast(tensor: Tensor) -> torch.autocast:
    """Context in which matrix products on the tensor's device keep the precision of their operands."""
    return torch.autocast(tensor.device.type, enabled=False)


def squared_distances(a: Tensor, b: Tensor, counts: Tensor | None = None) -> Tensor:
    """‖aᵢ − bⱼ‖² for all pairs: [..., n, dim] and [..., m, dim] give [..., n, m], float32 or wider, ≥ 0.

    Few pairs are computed by direct differences, in one kernel; many by a matrix product after subtracting the
    (detached) mean of all points of a and of the points of b that count (bool [..., m]; all by default). Without the
    mean, embeddings of norm 16 and spread 0.01 would lose their distances to cancellation. Near-duplicates still lose
    relative precision against the spread; use `euclidean_rows` if that matters. Leading axes are batches with
    separate means. The gradient of a distance that rounds to 0 is 0.
    """
    a, b = at_least_float32(a, b)
    if a.shape[-2] * b.shape[-2] * a.shape[-1] <= _DIRECT_TERMS:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    with without_autocast(a):
        of_b, num_b = b.detach(), b.shape[-2] if counts is None else counts.sum(-1)[..., None, None]
        if counts is not None:
            of_b = of_b.masked_fill(~counts.unsqueeze(-1), 0.0)
        center = (a.detach().sum(-2, keepdim=True) + of_b.sum(-2, keepdim=True)) / (a.shape[-2] + num_b)
        a, b = a - center, b - center
        squares_a = a.square().sum(-1).unsqueeze(-1)
        squares_b = b.square().sum(-1).unsqueeze(-2)
        return (squares_a + squares_b - 2.0 * (a @ b.transpose(-1, -2))).clamp_min(0.0)


def euclidean_rows(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ along the last axis: [..., dim] and [..., dim], broadcast, give [...], float32 or wider.

    Computed from direct differences, exact for near-duplicates; the gradient of a distance of 0 is 0, not NaN.
    """
    a, b = at_least_float32(a, b)
    return torch.linalg.vector_norm(a - b, dim=-1)


def smallest(values: Tensor, num: int, *, is_sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The `num` smallest values of each row, or all, and their columns: like `Tensor.topk`, without gradient.

    On a CPU, numpy is used for a large share of the columns: of 1,100 columns torch takes 4 times as long for the
    nearest 1,000.

    Args:
        values: float32 [n, columns], no NaN.
        num: at least 1.
        is_sorted: sort the values in ascending order; unsorted takes half the time.

    Returns:
        Values [n, min(num, columns)], and their columns as int64 of the same shape.
    """
    values, num = values.detach(), min(num, values.shape[1])
    if values.device.type != "cpu" or 8 * num < values.shape[1]:
        return values.topk(num, largest=False, sorted=is_sorted)
    array = values.numpy()
    columns = np.empty((len(array), num), dtype=np.int64)
    for row, kept in zip(array, columns, strict=True):
        chosen = row.argpartition(num)[:num] if num < len(row) else np.arange(num)
        kept[:] = chosen[row[chosen].argsort()] if is_sorted else chosen
    found = torch.from_numpy(columns)
    return values.gather(1, found), found
