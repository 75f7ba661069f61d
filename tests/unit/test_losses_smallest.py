"""The nearest columns of each row, against a full sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.losses.distances import smallest


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), num=st.sampled_from([1, 4, 20, 29, 30, 50]))
def test_smallest_values_are_those_of_a_full_sort(seed: int, num: int) -> None:
    values = torch.randn(5, 30, generator=torch.Generator().manual_seed(seed))
    values[:, ::7] = torch.inf
    values[0] = torch.inf
    found, columns = smallest(values, num)
    assert torch.equal(found, values.sort(1).values[:, :num])
    assert torch.equal(found, values.gather(1, columns))
    unordered, _ = smallest(values, num, is_sorted=False)
    assert torch.equal(unordered.sort(1).values, found)
    assert all(len(set(row)) == min(num, 30) for row in columns.tolist())


@pytest.mark.parametrize("num", [1, 3])
def test_smallest_of_no_rows_is_empty(num: int) -> None:
    found, columns = smallest(torch.zeros(0, 4), num)
    assert found.shape == columns.shape == (0, num)
