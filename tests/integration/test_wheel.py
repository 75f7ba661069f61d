"""The wheel, built from the checkout and installed away from it: its lines, and that its commands need nothing else."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.jobs.archive import write_archive

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "tune", "fsl_dist", "index")
TINY = [
    "backbone.name=conv4",
    "backbone.pretrained=false",
    "backbone.width=8",
    "data.resize_size=16",
    "data.image_size=16",
    "method.k_same=2",
    "method.m_other=2",
    "training.batch_size=30",
    "training.epochs=1",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it, from a copy: a build leaves folders in its sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    program = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", program, str(out)], cwd=source, capture_output=True, text=True, check=True
    )
    (found,) = out.glob("*.whl")
    return found


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that has the wheel, and a folder to work in."""

    folder: Path
    environment: Path
    home: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the folder, with nothing of the checkout on its path."""
        path = self.environment / "bin"
        kept = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "RAY_"))}
        return subprocess.run(
            [path / command[0], *command[1:]],
            cwd=self.folder,
            env={**kept, "PATH": f"{path}:/usr/bin:/bin", "HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=280,
        )

    def fsl_dist(self, *arguments: str | Path) -> str:
        """Run a command; what it prints."""
        done = self.run("fsl-dist", *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, which sees the dependencies of this one."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "--quiet"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(tmp_path_factory.mktemp("elsewhere"), environment, tmp_path_factory.mktemp("home"))


def files_of(archive: Path) -> dict[str, bytes]:
    """The packages' files in a zip."""
    with zipfile.ZipFile(archive) as opened:
        return {
            name: opened.read(name)
            for name in opened.namelist()
            if name.startswith(tuple(f"{p}/" for p in PACKAGES))
        }


def test_the_wheel_has_what_submit_sends(wheel: Path, installed: Installed, tmp_path: Path) -> None:
    write_archive(tmp_path / "checkout.zip")
    sent = files_of(tmp_path / "checkout.zip")
    assert files_of(wheel) == sent
    assert {
        "cluster/k8s/base/train.yaml",
        "cluster/k8s/README.md",
        "fsl_dist/experiments/own-images.yaml",
    } <= set(sent)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(sent)
    program = "import sys; from pathlib import Path; from cluster.jobs.archive import write_archive; write_archive(Path(sys.argv[1]))"
    for name in ("a.zip", "b.zip"):
        done = installed.run("python", "-c", program, tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "a.zip") == sent, "an installed wheel must send the same code"
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_installed_wheel_knows_its_version_and_its_configurations(installed: Installed) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert installed.fsl_dist("--version").split()[-1] == version
    where = installed.run(
        "python", "-c", "import cluster, fsl_dist; print(cluster.__file__, fsl_dist.__file__)"
    )
    for module in where.stdout.split():
        assert Path(module).is_relative_to(installed.environment)
    assert "reproduce" in installed.fsl_dist("--help")
    tables = json.loads(installed.fsl_dist("reproduce", "--list", "--json"))
    assert "omniglot" in tables["pcn-2"]["families"]


def write_images(folder: Path) -> Path:
    """Four classes of twelve tiny images, distinguished by their colour; returns one of them."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(4):
        for number in range(12):
            path = folder / f"class {label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (20, 20, 3)) + np.array([50 * label, 30, 150 - 40 * label])
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_an_installed_wheel_does_the_main_job(installed: Installed) -> None:
    image = write_images(installed.folder / "my_images")
    installed.fsl_dist("pack", "my_images", "data/mine")
    installed.fsl_dist(
        "train", "--config", "own-images", "data.dataset=data/mine", "run.dir=runs/mine", *TINY
    )
    metrics = json.loads(installed.fsl_dist("evaluate", "runs/mine", "--json"))["metrics"]
    assert 0 <= metrics["knn/acc@1"] <= 1
    assert json.loads(installed.fsl_dist("predict", "runs/mine", image, "--json"))
    installed.fsl_dist("explain", "runs/mine", image, "--out", "why")
    installed.fsl_dist("index", "build", "runs/mine", "data/mine", "indexes/mine", "metric=l2")
    assert json.loads(installed.fsl_dist("index", "status", "indexes/mine", "--json"))["version"] == 1


def run_first_example(installed: Installed) -> tuple[str, Path]:
    """Run the example of the README in a folder of its own: what it printed, and the folder."""
    folder = installed.folder / "from python"
    write_images(folder / "my_images")
    done = replace(installed, folder=folder).run(
        "python", ROOT / "examples" / "first_run.py", "my_images", *TINY
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, folder


def test_an_installed_wheel_does_the_main_job_from_python(installed: Installed) -> None:
    printed, folder = run_first_example(installed)
    assert "knn/acc@1" in printed
    assert (folder / "why" / "index.html").is_file()
    assert (folder / "indexes" / "mine" / "current").is_file()


def test_an_installed_wheel_renders_its_manifests(installed: Installed) -> None:
    rendered = installed.fsl_dist(
        "submit", "--to", "kuberay", "--name", "first", "--dry-run", "--",
        "train", "--config", "omniglot/pcn", "run.dir=/mnt/fsl-dist/runs/first", "data.dataset=/mnt/fsl-dist/data",
    )  # fmt: skip
    assert "kind: RayJob" in rendered


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_fresh_environment_needs_nothing_else(wheel: Path, tmp_path: Path) -> None:
    """Downloads and installs everything, 8 GB."""
    venv.create(tmp_path / "environment", with_pip=True)
    fresh = Installed(tmp_path / "elsewhere", tmp_path / "environment", tmp_path)
    fresh.folder.mkdir()
    pip = [
        str(tmp_path / "environment" / "bin" / "python"),
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, "install", "--upgrade", "pip>=24"], check=True)
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "install", *constraints, f"{wheel}[all]"], check=True)
    subprocess.run([*pip, "check"], check=True)
    for package in (
        "torch",
        "torchvision",
        "ray.train",
        "ray.tune",
        "faiss",
        "webdataset",
        "nvidia.dali",
        "sklearn",
        "pytest",
    ):
        imported = fresh.run("python", "-c", f"import {package}")
        assert imported.returncode == 0, imported.stderr[-3000:]
    assert json.loads(fresh.fsl_dist("doctor", "--json"))["decoder"] == "dali"
    assert "omniglot" in fresh.fsl_dist("reproduce", "--list")
    test_an_installed_wheel_does_the_main_job(fresh)
    printed, folder = run_first_example(fresh)
    assert "knn/acc@1" in printed
    assert (folder / "indexes" / "mine" / "current").is_file()
