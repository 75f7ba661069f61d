"""The contenders of `bench stream` do the same work."""

from contextlib import ExitStack

import pytest
import torch

pytest.importorskip("nvidia.dali", reason="DALI has no wheel for this machine")

from benchmarks.suite.photographs import write_photographs
from benchmarks.suite.stream import LIMIT, OURS, make_contenders

pytestmark = pytest.mark.integration


@pytest.mark.filterwarnings("ignore")  # webdataset and what it imports warn as they like
def test_all_give_every_image_once_and_the_same_pixels(tmp_path):
    write_photographs(tmp_path / "photographs", classes=10, per_class=3, processes=2)
    with ExitStack() as stack:
        contenders = make_contenders(tmp_path, batch=8, stack=stack, is_random=False)
        means = {
            name: torch.cat([images.float().reshape(len(images), -1).mean(1) for images in reader()])
            for name, reader in contenders.items()
        }
    assert len(means.pop("episodes")) == 200
    assert {name: len(mean) for name, mean in means.items()} == dict.fromkeys(means, 30)
    means.pop(LIMIT)
    expected = means[OURS[0]].sort().values
    assert expected.std() > 0.1
    for name, mean in means.items():
        assert (mean.sort().values - expected).abs().max() < 0.02, name
