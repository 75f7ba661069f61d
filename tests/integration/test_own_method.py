"""docs/how_to/new_method.md, new_backbone.md and new_metric.md as they say: distributions that add a method, a backbone and a metric."""

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_method"
SETTINGS = [
    "method.kind=supcon", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]",
    "data.resize=exact", "data.resize_size=16", "data.image_size=16", "data.decoder=torchvision", "backbone.name=conv4",
    "backbone.width=16", "training.batch_size=50", "training.lr=1e-3", "training.patience=0",
    "training.schedule=constant", "training.warmup=0",
]  # fmt: skip


def install(
    folder: Path, points: dict[str, str], module: Path | None = None, group: str = "fsl_dist.methods"
) -> Path:
    """What `pip install --no-deps` leaves: the module, and a record of its entry points."""
    name = "fsl-dist-supcon" if module is None else f"fsl-dist-{module.stem}".replace("_", "-")
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    if module:
        (folder / module.name).write_bytes(module.read_bytes())
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    return install(
        tmp_path_factory.mktemp("site"), project["entry-points"]["fsl_dist.methods"], EXAMPLE / "supcon.py"
    )


def fsl_dist(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = "import sys; from cluster.cli import main; sys.argv[0] = 'fsl-dist'; main()"
    paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=280,
    )


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize(
    ("page", "module", "num_blocks"),
    [
        ("new_method.md", "own_method/supcon.py", 3),
        ("new_backbone.md", "own_backbone/tiny_vit.py", 2),
        ("new_metric.md", "own_metric/map_at_r.py", 2),
    ],
)
def test_the_page_shows_the_example(page: str, module: str, num_blocks: int) -> None:
    blocks = re.findall(r"```(python|toml)\n(.*?)```", (ROOT / "docs" / "how_to" / page).read_text(), re.S)
    assert len(blocks) == num_blocks
    source = ROOT / "examples" / module
    sources = {"python": source.read_text(), "toml": source.with_name("pyproject.toml").read_text()}
    for language, block in blocks:
        assert block in sources[language]


@pytest.mark.slow
def test_it_trains_resumes_and_is_scored(site: Path, digits: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = fsl_dist(
        site, "train", *SETTINGS, f"data.dataset={digits}", f"run.dir={whole}", "training.epochs=4"
    )
    assert done.returncode == 0, done.stderr
    curve = losses(whole)
    assert sum(curve[-3:]) < 0.9 * sum(curve[:3])
    first = fsl_dist(
        site, "train", *SETTINGS, f"data.dataset={digits}", f"run.dir={cut}", "training.epochs=2"
    )
    assert first.returncode == 0, first.stderr
    resumed = fsl_dist(
        site, "train", "--resume", *SETTINGS, f"data.dataset={digits}", f"run.dir={cut}", "training.epochs=4"
    )
    assert resumed.returncode == 0, resumed.stderr
    assert losses(cut) == pytest.approx(curve, rel=1e-5)
    scored = fsl_dist(site, "evaluate", whole, "--json")
    assert scored.returncode == 0, scored.stderr
    assert 0.3 < json.loads(scored.stdout)["metrics"]["knn/acc@5"] <= 1


def test_a_step_on_two_workers_is_the_step_on_one(site: Path, digits: Path, tmp_path: Path) -> None:
    worker, found = ROOT / "tests" / "helpers" / "train_worker.py", []
    for world_size in (1, 2):
        out = tmp_path / f"{world_size}.npz"
        settings = [
            *SETTINGS, "backbone.batch_norm_group=13", f"data.dataset={digits}", f"workers.num={world_size}",
            f"run.dir={tmp_path / str(world_size)}",
        ]  # fmt: skip
        case = {"task": "step", "dtype": "float64", "out": str(out), "settings": settings}
        (tmp_path / "cases.json").write_text(json.dumps({"step": case}))
        paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
        meeting = str(tmp_path / f"meeting-{world_size}")
        workers = [
            subprocess.Popen(
                [sys.executable, worker, tmp_path / "cases.json", str(rank), str(world_size), meeting],
                env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"},
            )
            for rank in range(world_size)
        ]
        assert [process.wait(280) for process in workers] == [0] * world_size
        found.append(dict(np.load(out)))
    one, two = found
    norm = np.linalg.norm(one["gradient"])
    assert norm > 0
    assert np.linalg.norm(one["gradient"] - two["gradient"]) <= 1e-9 * norm
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)


def test_its_settings_are_checked_like_all_others(site: Path, digits: Path, tmp_path: Path) -> None:
    for setting, words in (
        ("method.temperature=0", "method.temperature=0 must be above 0"),
        ("method.temprature=1", "did you mean method.temperature?"),
        ("method.margin=1", "method.margin belongs to method.kind=deep_knn or method.kind=batch_hard"),
    ):
        refused = fsl_dist(
            site, "train", *SETTINGS, setting, f"data.dataset={digits}", f"run.dir={tmp_path / 'run'}"
        )
        assert refused.returncode == 2, refused.stderr
        assert words in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


def points_of(example: str, group: str) -> dict[str, str]:
    project = tomllib.loads((ROOT / "examples" / example / "pyproject.toml").read_text())["project"]
    return project["entry-points"][group]


@pytest.mark.slow
def test_a_backbone_and_a_metric_of_ones_own(digits: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    for example, module, group in (
        ("own_backbone", "tiny_vit.py", "fsl_dist.backbones"),
        ("own_metric", "map_at_r.py", "fsl_dist.metrics"),
    ):
        install(site, points_of(example, group), ROOT / "examples" / example / module, group)
    run = tmp_path / "run"
    settings = [word for word in SETTINGS if not word.startswith(("method.", "backbone."))]
    done = fsl_dist(
        site, "train", *settings, "backbone.name=tiny_vit", "method.classes_per_batch=5", f"data.dataset={digits}",
        f"run.dir={run}", "training.epochs=12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scored = fsl_dist(site, "evaluate", run, "--protocol", "map_at_r", "--json")
    assert scored.returncode == 0, scored.stderr
    found = json.loads(scored.stdout)["metrics"]
    assert set(found) == {"map_at_r/map@r"}
    assert 0.1 < found["map_at_r/map@r"] <= 1
    refused = fsl_dist(site, "evaluate", run, "--protocol", "map_at_k")
    assert refused.returncode == 2
    assert "map_at_k must be one of knn, prototypes" in refused.stderr
    refused = fsl_dist(site, "train", "backbone.name=tiny_vt", "run.dir=run")
    assert refused.returncode == 2
    assert "did you mean tiny_vit?" in refused.stderr


def test_its_metric_is_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "own_metric"))
    from map_at_r import map_at_r

    rng = np.random.default_rng(0)
    gallery, queries = (rng.standard_normal((n, 3)).astype(np.float32) for n in (20, 6))
    gallery_labels, query_labels = rng.integers(0, 3, 20), rng.integers(0, 4, 6)
    of_query = []
    for query, label in zip(queries, query_labels, strict=True):
        nearest = sorted(range(20), key=lambda row: float(((gallery[row] - query) ** 2).sum()))
        relevant, hits, total = sum(gallery_labels == label), 0, 0.0
        for rank in range(relevant):
            if gallery_labels[nearest[rank]] == label:
                hits += 1
                total += hits / (rank + 1)
        if relevant:
            of_query.append(total / relevant)
    found = map_at_r(gallery, gallery_labels, queries, query_labels)
    assert found["map@r"] == pytest.approx(sum(of_query) / len(of_query), rel=1e-6)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (
            {"supcon": "nowhere:SupConConfig"},
            "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ({"supcon": "math:pi"}, "must be a settings class that derives from fsl_dist.methods.MethodSettings"),
        ({"other": "supcon:SupConConfig"}, 'needs the field kind: Literal["other"] = "other"'),
    ],
)
def test_a_distribution_that_does_not_fit_is_named(tmp_path: Path, point: dict[str, str], words: str) -> None:
    site = install(tmp_path, point, EXAMPLE / "supcon.py")
    refused = fsl_dist(site, "train", f"method.kind={next(iter(point))}", "run.dir=run")
    assert refused.returncode == 2
    assert words in refused.stderr
    assert "of fsl-dist-supcon" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_its_loss_is_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from supcon import supcon_loss

    draw = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(9, 4, generator=draw, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3])
    of_image = []
    for i in range(9):
        mates = [j for j in range(9) if j != i and labels[j] == labels[i]]
        total = sum(math.exp(float(points[i] @ points[j]) / 0.3) for j in range(9) if j != i)
        shares = [math.exp(float(points[i] @ points[j]) / 0.3) / total for j in mates]
        if mates:
            of_image.append(-sum(map(math.log, shares)) / len(mates))
    found = supcon_loss(points, labels, 0.3)
    assert found.loss.item() == pytest.approx(sum(of_image) / len(of_image), rel=1e-12)
