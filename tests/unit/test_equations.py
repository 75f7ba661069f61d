"""docs/equations.md: every function it names is documented and runs in production, every test it names exists."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "tune", "fsl_dist", "index")
ROWS = re.findall(
    r"^\| (.+?) \| `([\w.]+)` \| `([\w/.]+)::(\w+)` \|$", (ROOT / "docs/equations.md").read_text(), re.M
)


def test_the_page_has_rows() -> None:
    lines = [line for line in (ROOT / "docs/equations.md").read_text().splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith(("| equation", "| ---"))]
    assert len(ROWS) == len(lines) - len(heads) > 20


@pytest.mark.parametrize(
    ("paper", "last"),
    [("Prototypical clustering networks (PCN)", 10), ("Deep kNN", 3), ("CHAI", 3), ("Deep clustering", 4)],
)
def test_every_equation_of_a_paper_has_a_row(paper: str, last: int) -> None:
    text = (ROOT / "docs/equations.md").read_text().split(f"## {paper}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| Eq\. (\d+)(?: (?:to|and) (\d+))?", text, re.M)
    numbers = {n for first, end in rows for n in range(int(first), int(end or first) + 1)}
    assert numbers == set(range(1, last + 1))


@pytest.mark.parametrize(("equation", "function", "file", "test"), ROWS)
def test_a_row_names_a_function_and_a_test(equation: str, function: str, file: str, test: str) -> None:
    module, _, name = function.rpartition(".")
    assert getattr(importlib.import_module(module), name).__doc__, equation
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, equation


@cache
def modules() -> dict[str, ast.Module]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`, which never run."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from running_nodes(child)


@cache
def used_elsewhere() -> set[str]:
    """`module.name` of what a module of the four packages takes from another one and mentions in its code."""
    found = set()
    for tree in modules().values():
        nodes = list(running_nodes(tree))
        mentioned = {node.id for node in nodes if isinstance(node, ast.Name)}
        attributes = {
            (node.value.id, node.attr)
            for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    whole, name = f"{node.module}.{alias.name}", alias.asname or alias.name
                    if name in mentioned:
                        found.add(whole)
                    found |= {f"{whole}.{attribute}" for owner, attribute in attributes if owner == name}
    return found


def runs_in_production(module: str, name: str) -> bool:
    """Whether another module uses the function, or uses one of its module that mentions it, over any number of steps."""
    mentions = {
        node.name: {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        for node in modules()[module].body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    reached: set[str] = set()
    ahead = [own for own in mentions if f"{module}.{own}" in used_elsewhere()]
    while ahead:
        own = ahead.pop()
        if own not in reached:
            reached.add(own)
            ahead += mentions[own] & mentions.keys()
    return name in reached


@pytest.mark.parametrize("function", sorted({function for _, function, _, _ in ROWS}))
def test_a_row_names_what_production_runs(function: str) -> None:
    module, _, name = function.rpartition(".")
    assert runs_in_production(module, name), f"only tests call {function}; name what production runs"


def test_what_only_its_own_module_or_a_type_mentions_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ast.parse("def f(): return g()\ndef g(): pass\ndef h(): return h()\nprint(f)")
    user = ast.parse("if TYPE_CHECKING:\n    from a.own import h\nfrom a.own import f as renamed\nrenamed()")
    monkeypatch.setitem(globals(), "modules", lambda: {"a.own": own, "a.user": user})
    monkeypatch.setitem(globals(), "used_elsewhere", used_elsewhere.__wrapped__)
    assert [runs_in_production("a.own", name) for name in ("f", "g", "h")] == [True, True, False]
