"""A sweep of trials with several workers asks Ray's autoscaler for nodes, and gives them back.

Ray's own AutoscalingCluster ends every Ray of the machine, so the program plays the autoscaler: it reads the request that one reads.
"""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import GREY_16_PX, PROGRAM

from index.base.settings import parse_overrides

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

GROW = """
import json, sys
from pathlib import Path
from fsl_dist.training.ray.session import prepare_import
prepare_import()
import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get
from tune.sweep_file import load_sweep
from tune.sweeps.sweep import prepare_sweep, run_tuner

config = prepare_sweep(load_sweep(Path(sys.argv[1])))
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
ray.init(address=cluster.address, log_to_driver=False)
most = {"asked": 0, "trials": 0}

def asked():
    return sum(bundle["CPU"] for bundle in json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]"))

def show(standing):
    # What an autoscaler does: a node where more is asked for than there is.
    if asked() > ray.cluster_resources()["CPU"] and len(ray.nodes()) < 2:
        cluster.add_node(num_cpus=2)
    most["asked"] = max(most["asked"], asked())
    most["trials"] = max(most["trials"], len(standing.running))

summary, _ = run_tuner(config, show=show)
print(json.dumps({**most, "finished": summary.finished, "asked_after": asked()}))
ray.shutdown()
cluster.shutdown()
"""


def test_trials_of_two_workers_get_a_node_from_the_autoscaler(digits: Path, tmp_path: Path) -> None:
    base = parse_overrides(
        [
            *GREY_16_PX, f"data.dataset={digits}", "data.holdout_fraction=0.25", "backbone.name=conv4", "backbone.width=8",
            "method.kind=cross_entropy", "training.batch_size=48", "training.epochs=30", "training.patience=100",
        ]
    )  # fmt: skip
    config = tmp_path / "sweep.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "base": base,
                "dir": str(tmp_path / "s"),
                "space": {"training.lr": {"grid": [1e-3, 2e-3, 3e-3, 4e-3]}},
                "search": "grid",
                "trials": 4,
                "include_base": False,
                "resources": {"workers": 2, "cpus": 1},
            }
        )
    )
    program = tmp_path / "grow.py"
    program.write_text(GROW)
    done = subprocess.run(
        [PROGRAM.with_name("python"), program, config], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts == {"asked": 6, "trials": 2, "finished": 4, "asked_after": 0}, done.stderr
