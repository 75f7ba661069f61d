"""docs/equations.md: every function it names exists and says where it comes from, every test it names is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (.+?) \| `([\w.]+)` \| `([\w/.]+)::(\w+)` \|$", (ROOT / "docs/equations.md").read_text(), re.M
)


def test_the_page_has_rows() -> None:
    lines = [line for line in (ROOT / "docs/equations.md").read_text().splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith(("| equation", "| ---"))]
    assert len(ROWS) == len(lines) - len(heads) > 20


@pytest.mark.parametrize("number", range(1, 11))
def test_every_equation_of_pcn_has_a_row(number: int) -> None:
    text = (ROOT / "docs/equations.md").read_text().split("## Deep kNN")[0]
    numbers = {
        n
        for first, last in re.findall(r"^\| Eq\. (\d+)(?: (?:to|and) (\d+))?", text, re.M)
        for n in range(int(first), int(last or first) + 1)
    }
    assert number in numbers


@pytest.mark.parametrize(("equation", "function", "file", "test"), ROWS)
def test_a_row_names_a_function_and_a_test(equation: str, function: str, file: str, test: str) -> None:
    module, _, name = function.rpartition(".")
    assert getattr(importlib.import_module(module), name).__doc__, equation
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, equation
