"""The example with two workers: in a separate process group, and under Ray's TorchTrainer as its page says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.base.scratch import scratch_folder

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_trainer.py"

WORKER = """
import importlib.util, json, sys
from torch import distributed
spec = importlib.util.spec_from_file_location("own_trainer", sys.argv[1])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
rendezvous, rank = f"file://{sys.argv[3]}", int(sys.argv[4])
distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
print(json.dumps(example.train({"dataset": sys.argv[2], "num_steps": 10})))
distributed.destroy_process_group()
"""


def test_two_workers_train_on_batches_of_their_own(digits, tmp_path):
    arguments = [sys.executable, "-c", WORKER, str(EXAMPLE), str(digits), str(tmp_path / "rendezvous")]
    workers = [
        subprocess.Popen(
            [*arguments, str(rank)], stdout=subprocess.PIPE, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=240)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    first, second = (np.array(json.loads(text)) for text in said)
    assert not np.allclose(first, second)
    assert first[-3:].mean() + second[-3:].mean() < 0.8 * (first[:2].mean() + second[:2].mean())


@pytest.mark.slow
def test_the_example_trains_under_ray(digits, tmp_path):
    with scratch_folder("fsl-ray-") as scratch:  # short, for Ray's socket paths
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), str(digits), "2"],
            capture_output=True,
            text=True,
            env={
                **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
                "PYTHONPATH": str(EXAMPLE.parents[1]),
                "HOME": str(tmp_path),
                "RAY_TMPDIR": str(scratch),
                "RAY_AUTH_MODE": "disabled",
            },
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
