"""The reference pages say what the code does: commands, errors, exit codes, metrics, index files and public names."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import numpy as np
import pytest

import fsl_dist
import index
from fsl_dist.metrics.clustering import cluster_scores
from fsl_dist.metrics.few_shot import draw_scores
from fsl_dist.metrics.knn import knn_metrics
from index.config import IndexConfig
from index.versions import Manifest
from index.writing.build import build

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
sys.path.append(str(ROOT / "docs"))
from error_texts import ErrorText, find_texts  # noqa: E402
from make_errors import ADVICE, find_advice, place, render, split_way_out  # noqa: E402


@pytest.fixture(scope="module")
def texts() -> list[ErrorText]:
    return find_texts()


def test_the_commands_are_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_commands.py"), "--check"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


def test_the_errors_are_up_to_date(texts: list[ErrorText]) -> None:
    pages = {path.name: path.read_text("utf-8") for path in (REFERENCE / "errors").glob("*.md")}
    assert pages == render(texts), "run python docs/make_errors.py"


def _mistakes(tmp: Path) -> dict[str, object]:
    vectors, labels = np.zeros((3, 4), np.float32), np.zeros(3, np.int64)
    built = index.open_index(build(tmp / "index", vectors, labels).parents[1])
    (tmp / "empty").mkdir()
    return {
        "an unknown key": lambda: fsl_dist.train("own-images", settings={"training.epoch": 1}),
        "a value out of its range": lambda: fsl_dist.train("own-images", settings={"training.epochs": -1}),
        "a rule of two settings": lambda: IndexConfig(kind="factory"),
        "a run that is none": lambda: fsl_dist.open_run(tmp / "empty"),
        "no images": lambda: fsl_dist.pack(tmp / "empty", tmp / "packed"),
        "an index that is none": lambda: index.open_index(tmp / "empty"),
        "two filters": lambda: built.search(vectors, 1, same_class=labels, other_class=labels),
        "vectors of another type": lambda: build(tmp / "other", vectors.astype(np.float64), labels),
        "nothing to check": lambda: fsl_dist.doctor(tmp / "empty"),
    }


def test_messages_of_real_mistakes_are_on_the_pages(texts: list[ErrorText], tmp_path: Path) -> None:
    patterns = [re.compile(one.pattern, re.DOTALL) for one in texts]
    missing = {}
    for name, mistake in _mistakes(tmp_path).items():
        with pytest.raises(fsl_dist.FslDistError) as caught:
            mistake()  # type: ignore[operator]
        message = " ".join(str(caught.value).split())
        if not any(pattern.fullmatch(message) for pattern in patterns):
            missing[name] = message
    assert missing == {}
    assert not any(pattern.fullmatch("settings=own-images holds nothing of the kind") for pattern in patterns)


def test_every_raised_text_is_found(texts: list[ErrorText]) -> None:
    """A second reading of the source, by its lines rather than its tree, finds no first words that the pages lack."""
    first_words = re.compile(
        r"(?:RequestError|ConfigError|DataError|TrainingError|VersionError|StorageError)\(\s*f?\"([^\"{\\]{12,})"
    )
    pages = " ".join(one.text for one in texts)
    found = [
        (path.name, start)
        for package in ("cluster", "tune", "fsl_dist", "index")
        for path in (ROOT / package).rglob("*.py")
        for start in first_words.findall(path.read_text("utf-8"))
    ]
    assert len(found) > 100
    assert [(name, start) for name, start in found if " ".join(start.split()) not in pages] == []


def test_an_error_has_its_page_exit_code_and_way_out(texts: list[ErrorText]) -> None:
    assert place("index/base/object_store.py")[0] == "storage.md"
    assert place("index/search.py")[0] == "neighbour_index.md"
    codes = {one.text: one.exit_code for one in texts if one.path == "index/search.py"}
    assert {code for text, code in codes.items() if "same_class and other_class" in text} == {"2"}
    assert {one.exit_code for one in texts if one.path == "index/actors/replicas.py"} >= {"1"}
    assert split_way_out("x and y exclude each other; search twice") == (
        "x and y exclude each other",
        "search twice",
    )
    assert split_way_out("a=1 is too small (b=2 (or c) helps)") == ("a=1 is too small", "b=2 (or c) helps")
    assert split_way_out("x is needed: put it under y") == ("x is needed", "put it under y")
    assert split_way_out("it is cut, so pack again") == ("it is cut", "pack again")
    assert split_way_out("PATH is damaged: x=3 is odd")[1] == split_way_out("no run (config.yaml)")[1] == ""
    assert split_way_out("no column 'x'; it has y") == ("no column 'x'; it has y", "")


def test_every_message_says_what_to_do(texts: list[ErrorText]) -> None:
    found = [find_advice(one) for one in texts]
    rows = [
        line.split(" | ")
        for page in render(texts).values()
        for line in page.splitlines()
        if re.search(r"\| [\d, ]* ?\|$", line) and line.count(" | ") == 2
    ]
    assert len(rows) > 500
    assert [row[0] for row in rows if not re.search(r"[a-z].*[ =(]|[=(].*[a-z]", row[1])] == []
    # The advice of a whole page is for a few messages, and no entry is left over from a message that has changed.
    general = [
        one.text
        for one, (cause, _, advice) in zip(texts, found, strict=True)
        if advice is None and cause == one.text
    ]
    assert len(general) < len(texts) / 50, general
    assert set(ADVICE) - {advice for _, _, advice in found} == set()


def test_advice_names_commands_that_exist() -> None:
    from cluster import cli

    named = [match.split() for one in ADVICE for match in re.findall(r"`fsl-dist ([a-z0-9 -]+)", one.say)]
    assert len(named) > 10
    for words in named:
        command: click.Command = cli.fsl_dist
        for word in words:
            if isinstance(command, click.Group):
                assert word in command.commands, words
                command = command.commands[word]


def test_the_page_lists_every_exit_code() -> None:
    found = {128 + 2, 128 + 15}  # index.base.stopping adds a signal's number
    for package in ("cluster", "tune", "fsl_dist", "index"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                is_exit = isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    *("sys.exit", "SystemExit", "os._exit", "click.exceptions.Exit"),
                )
                is_code = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "exit_code"
                if is_exit or is_code:
                    values = ast.walk(node.args[0] if isinstance(node, ast.Call) and node.args else node)
                    found |= {
                        value.value
                        for value in values
                        if isinstance(value, ast.Constant) and type(value.value) is int and value.value != 128
                    }
    rows = re.findall(r"^\| (\d+) \|", (REFERENCE / "exit_codes.md").read_text("utf-8"), re.MULTILINE)
    assert {int(code) for code in rows} == found | {0}


def test_the_page_lists_every_metric() -> None:
    page = (REFERENCE / "metrics.md").read_text("utf-8")
    two = np.array([0, 1])
    knn = knn_metrics(two, two, class_labels=two, class_counts=np.array([3, 4]))
    names = {f"knn/{name}@K_p" for name in knn} | {f"kmeans/{name}" for name in cluster_scores(two, two)}
    names |= {
        name.replace("base_novel", "GROUP") for name in draw_scores(two, two, 2) if "base_novel" in name
    }
    logged = re.compile(r"(?:train|time|mining)/[a-z_]+")
    names |= {
        node.value
        for path in (ROOT / "fsl_dist").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and logged.fullmatch(node.value)
    }
    assert len(names) > 30
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_the_page_lists_every_file_and_key_of_an_index(tmp_path: Path) -> None:
    page = (REFERENCE / "index_format.md").read_text("utf-8")
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(400, 8)).astype(np.float32), np.repeat(np.arange(4), 100)
    ids = rng.permutation(1000)[:400]
    config = IndexConfig(kind="ivf_flat", nlist=4, shards=2)
    build(tmp_path / "index", vectors, labels, ids, config, owner=index.Owner.claim(tmp_path / "index"))
    index.IndexWriter(tmp_path / "index").remove(ids[:3])
    written = {
        path.relative_to(tmp_path / "index").as_posix()
        for path in (tmp_path / "index").rglob("*")
        if path.is_file()
    }
    tree = page.split("    INDEX/\n")[1].split("\n\n")[0]
    patterns, folder = [], ""
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folder = "" if indent == 6 else folder
        pattern = re.sub(r"0*[01](?=\D|$)", r"\\d+", re.escape(folder + name)) if line else ""
        patterns.append(pattern)
        folder = name if name.endswith("/") and indent == 6 else folder
    assert {name for name in written if not any(re.fullmatch(pattern, name) for pattern in patterns)} == set()
    keys = set(
        re.findall(r"^\| `(\w+)` \|", page.split("## manifest.json")[1].split("\n## ")[0], re.MULTILINE)
    )
    assert keys == set(Manifest.__dataclass_fields__) | {"checksum"}


def test_every_public_name_is_on_one_page() -> None:
    modules = ["fsl_dist", "index"] + [
        f"fsl_dist.{name}" for name in ("data", "samplers", "losses", "models", "methods", "heads")
    ]
    public = {
        id(getattr(importlib.import_module(module), name)): f"{module}.{name}"
        for module in modules
        for name in importlib.import_module(module).__all__
        if not name.startswith("__") and f"{module}.{name}" not in modules
    }
    shown: Counter[int] = Counter()
    for page in (REFERENCE / "api").glob("*.md"):
        for dotted in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE):
            module, _, name = dotted.rpartition(".")
            shown[id(getattr(importlib.import_module(module), name))] += 1
    assert {name for key, name in public.items() if key not in shown} == set()
    assert max(shown.values()) == 1
