"""The tutorials as they are: their commands and their Python run in a new folder, in their order."""

import socket
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from k8s_security import broken_rules
from page_scripts import ROOT, commands_of, fenced, run_page, write_digits

import fsl_dist
from cluster.jobs.kuberay.kustomize import read_objects

pytestmark = pytest.mark.integration

TUTORIALS = ROOT / "docs" / "tutorials"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the digits of the first tutorial, by its own first block."""
    out = write_digits(tmp_path / "work")
    assert len(list(out.glob("digits/*/*.png"))) == 351
    return out


def test_digits_in_python(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    printed = run_page(TUTORIALS / "digits.md", tmp_path / "work")
    shown = [text for kind, text in fenced(TUTORIALS / "digits.md") if kind == "text"]
    assert shown[0] in printed
    run = fsl_dist.open_run(tmp_path / "work" / "runs" / "digits")
    assert run.evaluate()["knn/acc@5"] > 0.6
    assert (tmp_path / "work" / "why" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fit_on_your_own_images(folder: Path) -> None:
    run_page(TUTORIALS / "own_images.md", folder)
    fit = fsl_dist.Fit(folder / "digits-fit")
    assert fit.chosen.test is not None
    assert fit.chosen.test.acc > 0.6
    assert (folder / "why" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_a_folder_to_a_served_evidence_page(folder: Path) -> None:
    ports = {"8080": str(_free_port()), "8000": str(_free_port())}
    printed = run_page(TUTORIALS / "evidence.md", folder, replaced=ports)
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert page == (folder / "why" / "index.html").read_text(encoding="utf-8")
    assert "3/000" in printed
    answered = [line for line in printed.splitlines() if line.startswith("[[")]
    assert len(answered) == 1
    deadline = time.monotonic() + 30
    while not all(_free(int(port)) for port in ports.values()):
        assert time.monotonic() < deadline, "both servers have ended"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_first_sweep(folder: Path) -> None:
    run_page(TUTORIALS / "first_sweep.md", folder)
    sweep = fsl_dist.Sweep(folder / "sweeps" / "digits")
    assert len(sweep.dataframe()) == 5, "four points and the base"
    assert fsl_dist.open_run(folder / "runs" / "best").evaluate()["knn/acc@5"] > 0.4


def test_from_an_empty_kubernetes_cluster_to_a_job(tmp_path: Path) -> None:
    page, folder = TUTORIALS / "kubernetes.md", tmp_path / "work"
    folder.mkdir()
    run_page(page, folder)
    objects = list(yaml.safe_load_all((folder / "job.yaml").read_text(encoding="utf-8")))
    assert [one["kind"] for one in objects] == ["ConfigMap", "RayJob", "NetworkPolicy", "NetworkPolicy"]
    assert broken_rules(objects) == []
    # The job that is shown is the one that runs.
    dry, real, scores = [one for one in commands_of(page) if one[0] == "submit"]
    assert [one for one in dry if one != "--dry-run"][: len(real) - 1] == [
        one for one in real if one != "--follow"
    ]
    assert scores[-2:] == ["evaluate", "/mnt/fsl-dist/runs/first"]
    # What it applies by hand exists, and the image's name is the version's.
    shown = "".join(text for kind, text in fenced(page) if kind == "sh")
    applied = {word for word in shown.split() if word.startswith("k8s/")}
    assert len(applied) == 5
    assert all(list(read_objects(ROOT / path)) for path in applied)
    assert f"fsl-dist:{fsl_dist.__version__} " in shown


def _free(port: int) -> bool:
    """Whether nobody listens on `port` of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    """A port that nobody listens on, outside those that Ray gives to its workers."""
    rng = np.random.default_rng()
    return next(port for port in map(int, rng.permutation(np.arange(21_000, 32_000))) if _free(port))


@pytest.mark.parametrize(
    ("page", "printed"),
    [("migrate.md", ["torch.Size([32, 1, 16, 16])", "False"]), ("filter_search.md", ["True True", "-1"])],
)
def test_python_of_a_how_to(page: str, printed: list[str], folder: Path) -> None:
    found = run_page(ROOT / "docs" / "how_to" / page, folder)
    assert all(text in found for text in printed), found
