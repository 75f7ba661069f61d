"""Messages: the library speaks of arguments, the command line of options."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import fsl_dist as root
from cluster.commands.messages import in_options, innermost

ROOT = Path(__file__).parents[2]

# Commands are what these run and what their reports list.
ABOUT_COMMANDS = (
    "tune/index_sweeps/report.py",
    "tune/sweeps/report.py",
    "tune/tables/",
)


@pytest.mark.parametrize(
    ("arguments", "message", "words"),
    [
        (
            "train run.dir=x",
            "run.dir=x contains a run (resume=True continues it)",
            "run.dir=x contains a run (--resume continues it)",
        ),
        ("train --config a.yaml", "config=a.yaml cannot be read", "--config a.yaml cannot be read"),
        ("evaluate r", "protocol=x must be one of knn", "--protocol x must be one of knn"),
        (
            "evaluate r",
            "data.protocol=x stays, index_actors=2 is new",
            "data.protocol=x stays, --index-actors 2 is new",
        ),
        (
            "pack a b",
            "append=True adds; fractions=0.5,0.5 are two",
            "--append adds; --fractions 0.5,0.5 are two",
        ),
        (
            "pack a b",
            "path_column and mask_column name columns",
            "--path-column and --mask-column name columns",
        ),
        ("pack a b", "a table of splits is in order", "a table of splits is in order"),
        (
            "explain r a.jpg",
            "maps=False needs none; k=9 is too many",
            "--no-maps needs none; --k 9 is too many",
        ),
        ("evaluate r", "split=classes is no option here", "split=classes is no option here"),
        (
            "evaluate r",
            "there is no novel split (pack(split=base-novel, num_base=5) makes one)",
            "there is no novel split (`fsl-dist pack --split base-novel --num-base 5` makes one)",
        ),
        ("index search i", "go back with roll_back(INDEX)", "go back with `fsl-dist index rollback INDEX`"),
        ("index add i", "no flag(s) here, nor unknown(name=1)", "no flag(s) here, nor unknown(name=1)"),
        ("sweep resume s", "retry_failed=True tries again", "--retry-failed tries again"),
        (
            "plot tsne r",
            "out=a.jpg must end in .png, /tmp/out=b too",
            "--out a.jpg must end in .png, /tmp/out=b too",
        ),
    ],
)
def test_arguments_become_options_of_the_command(arguments: str, message: str, words: str) -> None:
    assert in_options(message, root, innermost(root, arguments.split())) == words


def test_the_command_line_prints_errors_in_its_own_words(tmp_path: Path) -> None:
    asked = [
        sys.executable,
        "-m",
        "cluster.cli",
        "pack",
        str(tmp_path),
        str(tmp_path / "out"),
        "--path-column",
        "file",
    ]
    failed = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: --path-column, --label-column, ")
    assert "set the table with --table" in failed.stderr


def test_the_library_names_no_option_and_no_command() -> None:
    named = re.compile(rf"(?<![\w-])--[a-z]|\bfsl-dist (?:{'|'.join(root.commands)})\b(?! \d)")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value[:60]!r}"
        for package in ("fsl_dist", "tune", "index")
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(ABOUT_COMMANDS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and named.search(node.value)
        if "var(--" not in node.value  # a style sheet
    ]
    assert found == []
