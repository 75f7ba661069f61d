"""Without any optional package: everything imports that should, one process trains and searches, and what is missing is named."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from index.base.extras import EXTRA_OF

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

# Whatever an extra installs for this project's own use, and what would otherwise come with it.
HIDDEN = {*EXTRA_OF, "ray.serve", "starlette", "uvicorn", "aiohttp", "pandas", "tensorboardX", "webdataset"}
# What is only ever loaded where its package is.
NEEDS_ITS_PACKAGE = {
    "cluster.service.app",
    "cluster.service.connections",
    "cluster.service.gate",
    "cluster.service.replica",
    "cluster.service.routes",
    "cluster.view.application",
    "cluster.view.correcting",
    "cluster.view.gate",
    "cluster.view.server",
    "fsl_dist.data.decode_dali",
    "fsl_dist.training.ray.network",
    "tune.sweeps.engine.driver",
    "tune.sweeps.engine.population",
    "tune.sweeps.engine.records",
    "tune.sweeps.engine.schedulers",
    "tune.sweeps.engine.searcher",
    "tune.sweeps.engine.trainable",
    "tune.sweeps.engine.tuner",
}
BEGIN = f"""
import json, sys
from importlib.machinery import PathFinder
from pathlib import Path

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {HIDDEN!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def run_hidden(program: str, folder: Path) -> dict:
    """What `program` prints as JSON, in a process where no optional package can be imported."""
    found = subprocess.run(
        [sys.executable, "-c", BEGIN + program], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert found.returncode == 0, found.stderr[-3000:]
    result: dict = json.loads(found.stdout.splitlines()[-1])
    result["log"] = found.stderr
    return result


def test_extras_are_those_of_the_distribution() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRA_OF.values()) == set(extras) - {"all", "bench", "dev", "docs", "webdataset"}
    everything = extras["all"][0].removeprefix("fsl-dist[").removesuffix("]").split(",")
    assert set(everything) == set(extras) - {"all", "bench", "dev", "docs"}


def test_every_module_imports_but_those_made_of_a_package(tmp_path: Path) -> None:
    found = run_hidden(
        """
import importlib, pkgutil
import cluster, tune, fsl_dist, index

failed = {}
for package in (cluster, tune, fsl_dist, index):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed[module.name] = str(error)
print(json.dumps(failed))
""",
        tmp_path,
    )
    del found["log"]
    assert set(found) == NEEDS_ITS_PACKAGE, found


def test_every_command_has_its_help(tmp_path: Path) -> None:
    found = run_hidden(
        """
import click
from click.testing import CliRunner
from cluster.cli import fsl_dist

def commands(group, words):
    for name, command in group.commands.items():
        yield [*words, name]
        if isinstance(command, click.Group):
            yield from commands(command, [*words, name])

codes = {" ".join(words): CliRunner().invoke(fsl_dist, [*words, "--help"]).exit_code for words in commands(fsl_dist, [])}
print(json.dumps(codes))
""",
        tmp_path,
    )
    del found["log"]
    assert len(found) > 30
    assert set(found.values()) == {0}


def test_one_process_trains_scores_and_searches(digits: Path, tmp_path: Path) -> None:
    found = run_hidden(
        f"""
import logging
import numpy as np, torch
from fsl_dist.losses.batch_hard import batch_hard_loss
from fsl_dist.config import load_config
from fsl_dist.evaluation.report import evaluate_run
from fsl_dist.training.launch import train_run
from index import open_index
from index.writing.build import build

logging.basicConfig(level=logging.INFO)
vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
labels = np.repeat(np.arange(4), 10)
loss = batch_hard_loss(torch.from_numpy(vectors), torch.from_numpy(labels), torch.arange(40), margin=1.0)
answer = open_index(build(Path("index"), vectors, labels)).search(vectors, k=1)
settings = [
    "data.dataset={digits}", "data.resize_size=16", "data.image_size=16", "backbone.name=conv4", "backbone.width=8",
    "method.kind=batch_hard", "training.batch_size=20", "training.epochs=1", "run.dir=run", "evaluation.k_p=[1]",
]
summary = train_run(load_config(None, settings))
metrics = evaluate_run(Path("run"), protocol="knn").to_json()["metrics"]
print(json.dumps({{
    "loss": float(loss[0]), "own": (answer.ids[:, 0] == np.arange(40)).all().item(), "steps": summary.steps, "metrics": metrics,
    "board": Path("run/tensorboard").exists(), "lines": len(Path("run/metrics.jsonl").read_text().splitlines()),
}}))
""",
        tmp_path,
    )
    assert found["loss"] > 0
    assert found["own"] is True
    assert found["steps"] > 0
    assert 0 <= found["metrics"]["knn/acc@1"] <= 1
    assert found["board"] is False
    assert found["lines"] >= found["steps"]
    assert "by torchvision on the CPU" in found["log"]
    assert "(DALI: this needs nvidia.dali: pip install 'fsl-dist[dali]')" in found["log"]
    assert (
        "no TensorBoard files are written: this needs tensorboard: pip install 'fsl-dist[tensorboard]'"
        in (found["log"])
    )


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["train", "--config", "own-images", "workers.num=2", "run.dir=run"], "ray"),
        (["sweep", "run", "--config", "sweep.yaml"], "ray"),
        (["submit", "--to", "ray", "--", "doctor"], "ray"),
        (
            ["submit", "--to", "kuberay", "--", "train", "--config", "own-images", "run.dir=/mnt/fsl-dist/r"],
            "kubernetes",
        ),
        (["index", "serve", "index"], "fastapi"),
        (["inspect", "s3://bucket/data"], "obstore"),
        (["sweep", "run", "--config", "sweep.yaml", "search=optuna"], "optuna"),
        (["train", "--config", "own-images", "data.decoder=dali", "run.dir=run2"], "nvidia.dali"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(
    words: list[str], package: str, digits: Path, tmp_path: Path
) -> None:
    base = {
        "data": {"dataset": str(digits)},
        "backbone": {"name": "conv4", "pretrained": False},
        "training": {"batch_size": 24},
    }
    sweep = {"dir": "sweep", "base": base, "space": {"training.lr": {"grid": [0.1, 0.2]}}, "trials": 2}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    if words[0] == "train":
        words = [*words, f"data.dataset={digits}", "backbone.name=conv4", "backbone.pretrained=false"]
        words += ["training.batch_size=24"]
    found = run_hidden(
        f"""
import contextlib, io
from cluster.cli import main
if {words!r}[:2] == ["index", "serve"]:
    import numpy as np
    from index.writing.build import build
    build(Path("index"), np.eye(4, dtype=np.float32), np.arange(4))
sys.argv = ["fsl-dist", *{words!r}]
errors = io.StringIO()
with contextlib.redirect_stderr(errors):
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
print(json.dumps({{"code": code, "said": errors.getvalue()}}))
""",
        tmp_path,
    )
    assert found["code"] == 2, found
    last = found["said"].strip().splitlines()[-1]
    assert f"this needs {package}: pip install 'fsl-dist[{EXTRA_OF[package]}]'" in last
