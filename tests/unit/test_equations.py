"""docs/reference/equations.md: every function it names is documented and runs in production, every test it names exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from production import reached_in_production

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (.+?) \| `([\w.]+)` \| `([\w/.]+)::(\w+)` \|$",
    (ROOT / "docs/reference/equations.md").read_text(),
    re.M,
)


def test_the_page_has_rows() -> None:
    lines = [
        line
        for line in (ROOT / "docs/reference/equations.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    heads = [line for line in lines if line.startswith(("| equation", "| ---"))]
    assert len(ROWS) == len(lines) - len(heads) > 20


@pytest.mark.parametrize(
    ("paper", "last"),
    [("Prototypical clustering networks (PCN)", 10), ("Deep kNN", 3), ("CHAI", 3), ("Deep clustering", 4)],
)
def test_every_equation_of_a_paper_has_a_row(paper: str, last: int) -> None:
    text = (ROOT / "docs/reference/equations.md").read_text().split(f"## {paper}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| Eq\. (\d+)(?: (?:to|and) (\d+))?", text, re.M)
    numbers = {n for first, end in rows for n in range(int(first), int(end or first) + 1)}
    assert numbers == set(range(1, last + 1))


@pytest.mark.parametrize(("equation", "function", "file", "test"), ROWS)
def test_a_row_names_a_function_and_a_test(equation: str, function: str, file: str, test: str) -> None:
    module, _, name = function.rpartition(".")
    assert getattr(importlib.import_module(module), name).__doc__, equation
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, equation


@pytest.mark.parametrize("function", sorted({function for _, function, _, _ in ROWS}))
def test_a_row_names_what_production_runs(function: str) -> None:
    assert function in reached_in_production(), f"only tests call {function}; name what production runs"
