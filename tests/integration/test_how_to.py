"""The commands of how-to pages run in their order, on small data that the page takes for granted."""

import contextlib
import functools
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from commands import GREY_16_PX, call
from page_scripts import ROOT, commands_of, inline_commands_of
from PIL import Image
from sklearn.datasets import load_digits

import fsl_dist
from cluster.cli import fsl_dist as program
from index.writing.build import build

pytestmark = pytest.mark.integration

HOW_TO = ROOT / "docs" / "how_to"
SMALL = [
    *GREY_16_PX,
    "backbone.name=conv4",
    "backbone.width=8",
    "backbone.pretrained=false",
    "data.flip=false",
]
"""a network that trains in a second, in place of a pretrained one"""
IN_THIS_PROCESS = ["workers.launch=process", "workers.gpu=never"]


def write_scans(folder: Path, names: Mapping[str, int], num: int) -> None:
    """Write `num` scans of digits to FOLDER/NAME for each name and its digit."""
    scans = load_digits()
    for name, digit in names.items():
        (folder / name).mkdir(parents=True)
        for number, scan in enumerate(scans.images[scans.target == digit][:num]):
            Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((16, 16)).save(
                folder / name / f"ISIC_{28579 + number:07}.png"
            )


def train(directory: str, dataset: str, *more: str) -> None:
    """Train a small run, as the pages take it to be there."""
    trained = call(
        program, "train", f"run.dir={directory}", f"data.dataset={dataset}", *SMALL, *IN_THIS_PROCESS, *more
    )
    assert trained.exit_code == 0, f"{trained.exception} {trained.output}"


def prepare_index_changes() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(100, dtype=np.int64) % 4
    build("indexes/own", rng.normal(size=(100, 8)).astype(np.float32), labels)
    for name, count in (("new", 5), ("better", 3)):
        np.save(f"{name}.npy", rng.normal(size=(count, 8)).astype(np.float32))
    for name, numbers in {
        "new-labels": [0, 1, 2, 3, 9],
        "new-ids": range(500, 505),
        "wrong": [7, 500],
        "I": [1, 2, 501],
        "L": [3, 3, 3],
    }.items():
        np.save(f"{name}.npy", np.array(numbers, np.int64))


def prepare_filters() -> None:
    """The index of the page's first block, and what its commands read."""
    vectors = np.random.default_rng(0).normal(size=(1000, 32)).astype(np.float32)
    labels = np.arange(1000, dtype=np.int64) % 10
    build("indexes/filters", vectors, labels)
    np.save("Q.npy", vectors[:3])
    np.save("L.npy", labels[:3])
    np.save("I.npy", np.arange(3))
    np.save("ranges.npy", np.array([[0, 500]] * 3))


def prepare_vectors() -> None:
    rng = np.random.default_rng(0)
    np.save("X.npy", rng.normal(size=(3000, 8)).astype(np.float32))
    np.save("Y.npy", np.arange(3000, dtype=np.int64) % 4)
    np.save("Q.npy", rng.normal(size=(2, 8)).astype(np.float32))


def prepare_images() -> None:
    write_scans(Path("my_images"), {"cat": 3, "dog": 5, "hen": 8}, 40)


def prepare_runs() -> None:
    """Runs that have written a checkpoint at step 56, and a data set."""
    prepare_images()
    fsl_dist.pack("my_images", "data/mine")
    train(
        "runs/mine",
        "data/mine",
        "training.batch_size=4",
        "training.images=240",
        "training.checkpoint_steps=56",
        "training.keep_checkpoints=9",
    )
    shutil.copytree("runs/mine", "runs/first")


def prepare_skin() -> None:
    """Photographs with lesion and mask, and runs on them."""
    names = {"melanoma": 0, "mel": 1, "nevus": 2}
    write_scans(Path("photos"), names, 20)
    lines = ["file,class,lesion,mask"]
    for number, path in enumerate(sorted(Path("photos").glob("*/*.png"))):
        mask = Path("photos/masks", path.relative_to("photos"))
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 60, 255, 0).astype(np.uint8)).save(mask)
        lines.append(
            f"{path.relative_to('photos')},{path.parent.name},{number // 2},{mask.relative_to('photos')}"
        )
    Path("labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {
        "path_column": "file",
        "label_column": "class",
        "group_column": "lesion",
        "mask_column": "mask",
    }
    fsl_dist.pack("photos", "data/skin", table="labels.csv", **columns)
    maps = ["backbone.map_head=8", "training.epochs=1"]
    train("runs/skin", "data/skin", "data.holdout_fraction=0.2", *maps)
    train("runs/skin-ce", "data/skin", "method.kind=cross_entropy", *maps)
    for name, seed in (("disease", 1), ("hierarchical", 2)):
        train(f"runs/{name}", "data/skin", f"run.seed={seed}", *maps)
    for name in "abcd":
        Image.open("photos/melanoma/ISIC_0028579.png").convert("L").save(f"{name}.jpg")


@dataclass(frozen=True)
class Page:
    """How a page's commands run in a test.

    Attributes:
        prepare: writes into the working folder what the page's reader has.
        more: beginning of a command → arguments that make it small.
        left_out: beginnings of commands that need hours, a cluster or data that is not here.
        writes: files that are there afterwards.
    """

    prepare: Callable[[], None]
    writes: Sequence[str]
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Sequence[str] = ()


PAGES = {
    "index_changes": Page(prepare_index_changes, ["indexes/own/versions/000002/manifest.json"]),
    "filter_search": Page(prepare_filters, ["R.npz"]),
    "migrate": Page(prepare_vectors, ["indexes/mine/current", "R.npz"]),
    "training": Page(
        prepare_runs,
        ["runs/first/checkpoints/step-00000056"],
        left_out=["reproduce", "train --config alphabets", "train data.dataset=data/ham10000"],
    ),
    "resume": Page(
        prepare_runs,
        ["runs/often/checkpoints", "runs/mine/checkpoints/step-00000056"],
        {
            "train --config own-images": [
                *SMALL,
                *IN_THIS_PROCESS,
                "training.epochs=1",
                "training.batch_size=16",
            ]
        },
        # These use Ray; test_workers.py, test_sweep.py and test_capacity.py have such runs.
        left_out=[
            "train --resume run.dir=runs/mine workers.num=4",
            "train --config own-images data.dataset=data/mine run.dir=runs/mine workers.num=8",
            "sweep resume",
        ],
    ),
    "checkpoints": Page(prepare_runs, ["model.onnx", "runs/mine/config.yaml"]),
    "explain": Page(
        prepare_skin,
        ["why/index.html", "why/a.png", "retrieval.png", "maps.png"],
        {"plot maps": ["--pairs", "2"]},
        left_out=["view"],  # it serves until Ctrl-C; test_view.py has it
    ),
    "heads": Page(prepare_skin, ["runs/skin/head.json"]),
    "fit": Page(
        prepare_images,
        ["my_images-fit/fit.json", "my_images-fit/report.html"],
        {"fit my_images": ["--minutes", "0.5", "backbone.pretrained=false"]},
        left_out=["fit my_images --minutes 10 backbone.weights"],
    ),
}
SLOW = ("fit",)


def shown_commands(page: Path) -> list[list[str]]:
    """The complete commands of a page, each once, with their optional parts; those inside sentences come last."""
    lines = {" ".join(one): one for one in (*commands_of(page), *inline_commands_of(page))}
    return [
        [_without_brackets(word) for word in words]
        for line, words in lines.items()
        if not re.search(r"…|\b[A-Z]{3,}\b(?!=)", line)
    ]


def _without_brackets(word: str) -> str:
    """A word of `[--to 3]`."""
    return (
        word.removeprefix("[")
        if word.startswith("[-")
        else word.removesuffix("]")
        if "[" not in word
        else word
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], None]], Path]:
    """A function that returns the folder in which a function of `PAGES` was called, once for all pages that name it."""

    @functools.cache
    def folder_of(prepare: Callable[[], None]) -> Path:
        folder = tmp_path_factory.mktemp("prepared")
        with contextlib.chdir(folder):
            prepare()
        return folder

    return folder_of


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PAGES]
)
def test_commands_of_a_how_to_run(
    name: str, prepared: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGES[name]
    monkeypatch.chdir(shutil.copytree(prepared(page.prepare), tmp_path / "work"))
    commands = shown_commands(HOW_TO / f"{name}.md")
    run = (
        [one for one in commands if not " ".join(one).startswith(tuple(page.left_out))]
        if page.left_out
        else commands
    )
    assert run
    for words in run:
        line = " ".join(words)
        more = [extra for start, extras in page.more.items() if line.startswith(start) for extra in extras]
        done = call(program, *words, *more)
        assert done.exit_code == 0, f"fsl-dist {line}: {done.exception} {done.output}"
    assert [path for path in page.writes if not Path(path).exists()] == []
    for start in (*page.left_out, *page.more):
        assert any(" ".join(one).startswith(start) for one in commands), f"{name}.md no longer shows {start}"
