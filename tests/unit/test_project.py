"""The project as a whole: generic import names come from here, the layers hold, the pages are fresh."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["cluster", "tune", "fsl_dist", "index"])
def test_generic_names_import_from_this_distribution(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT) or "fsl_dist" in Path(module.__file__).parts
    assert module.__doc__, f"{name} does not say what it is for"


def test_every_place_that_names_the_version_names_the_same() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## {re.escape(version)} \(", (ROOT / "CHANGELOG.md").read_text(), re.M)
    images = "".join(path.read_text() for path in (ROOT / "k8s").rglob("*.yaml"))
    tags = set(re.findall(r"fsl-dist(?::|, newTag: )([\d.]+)", images))
    assert tags == {version}


def test_the_command_line_loads_no_heavy_library() -> None:
    program = (
        "import sys, cluster.cli; print([m for m in ('torch', 'ray', 'faiss', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_training_and_evaluation_score_by_the_same_equation() -> None:
    from fsl_dist.losses.pcn import class_scores
    from fsl_dist.methods.prototypes import Prototypes
    from fsl_dist.metrics.prototypes import prototype_scores

    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(20, 6)).astype(np.float32)
    means = rng.normal(size=(5, 3, 6)).astype(np.float32)
    mask = np.arange(3)[None] < np.array([1, 2, 3, 3, 1])[:, None]
    ours = class_scores(*map(torch.from_numpy, (embeddings, means, mask)), temperature=0.7)
    theirs = prototype_scores(embeddings, Prototypes(means, mask, np.arange(5)), 0.7)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4)


def test_the_configuration_page_is_what_the_code_says() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_configuration.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, (
        "docs/reference/configuration.md is stale: run python docs/make_configuration.py"
    )


def test_the_architecture_page_lists_every_folder() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_folders.py"), "--check"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


def test_files_that_the_pages_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    of_a_run = {"config.yaml", "sweep-config.yaml", "best.yaml", "report.md"}
    known = [
        path.relative_to(ROOT).as_posix()
        for folder in (
            "cluster",
            "tune",
            "fsl_dist",
            "index",
            "benchmarks",
            "tests",
            "docs",
            "examples",
            "k8s",
        )
        for path in (ROOT / folder).rglob("*")
    ]
    missing = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|sh|md))`", page.read_text(encoding="utf-8"))
        if Path(name).name not in of_a_run
        and "NETWORK" not in name
        and not any(path == name or path.endswith(f"/{name}") for path in known)
    }
    assert missing == set()


def test_the_benchmarks_page_is_what_the_results_say() -> None:
    check = subprocess.run(
        [sys.executable, "-m", "benchmarks.page", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert check.returncode == 0, "docs/benchmarks/index.md is stale: run python -m benchmarks.page"
