"""Which functions of the four packages production reaches, read from their source."""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "tune", "fsl_dist", "index")
PROGRAMS = ("benchmarks", "docs", "examples")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Module:
    """One source file, read but not imported."""

    tree: ast.Module
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    """functions and classes at the top level"""

    def __post_init__(self) -> None:
        self.definitions = {node.name: node for node in self.tree.body if isinstance(node, _DEFINITIONS)}

    def mentions(self, node: ast.AST) -> set[str]:
        """Own functions and classes that a node mentions by name."""
        return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} & self.definitions.keys()

    @property
    def starts(self) -> set[str]:
        """Those that importing or running the module mentions: tables, decorators, commands."""
        found: set[str] = set()
        for node in self.tree.body:
            if not isinstance(node, _DEFINITIONS):
                found |= self.mentions(node)
            elif node.decorator_list:
                found.update(*map(self.mentions, node.decorator_list))
                if any(
                    isinstance(one, ast.Call) and "." in ast.unparse(one.func) for one in node.decorator_list
                ):
                    found.add(node.name)  # @group.command(…) keeps what it decorates
        return found


@cache
def read_modules(packages: tuple[str, ...] = PACKAGES) -> dict[str, Module]:
    """All modules by their dotted name."""
    paths = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {
        name.removesuffix(".__init__"): Module(ast.parse(path.read_text()))
        for name, path in zip(names, paths, strict=True)
    }


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`, which never run."""
    ahead = [node]
    while ahead:
        one = ahead.pop()
        yield one
        ahead += (
            child
            for child in ast.iter_child_nodes(one)
            if not (
                isinstance(child, ast.If)
                and isinstance(child.test, ast.Name)
                and child.test.id == "TYPE_CHECKING"
            )
        )


def used_from(module: Module) -> set[str]:
    """`module.name` of what a module imports and mentions in its code."""
    nodes = list(running_nodes(module.tree))
    mentioned = {node.id for node in nodes if isinstance(node, ast.Name)}
    attributes: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.setdefault(node.value.id, set()).add(node.attr)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole, name = f"{node.module}.{alias.name}", alias.asname or alias.name
                if name in mentioned:
                    found.add(whole)
                found |= {f"{whole}.{attribute}" for attribute in attributes.get(name, ())}
    return found


def named_in_texts() -> set[str]:
    """`module.name` of what entry points, manifests and programs in strings name: `module:name`, `from module import name`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        *project["scripts"].values(),
        *(path.read_text() for path in (ROOT / "k8s").rglob("*.yaml")),
    ]
    for module in read_modules().values():
        texts += [
            node.value
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    found = {
        f"{one}.{name}" for text in texts for one, name in re.findall(r"\b([a-z_]+(?:\.\w+)+):(\w+)", text)
    }
    return found | {
        f"{one}.{name}" for text in texts for one, name in re.findall(r"from ([\w.]+) import (\w+)", text)
    }


def reached(modules: dict[str, Module], outside: set[str]) -> set[str]:
    """`module.name` of all functions and classes that run from `outside`, from what modules use of each other, and from their top level."""
    used = outside.union(*map(used_from, modules.values()))
    found = set()
    for name, module in modules.items():
        ahead = [own for own in module.definitions if f"{name}.{own}" in used] + sorted(module.starts)
        while ahead:
            own = ahead.pop()
            if f"{name}.{own}" not in found:
                found.add(f"{name}.{own}")
                ahead += module.mentions(module.definitions[own])
    return found


@cache
def reached_in_production() -> set[str]:
    """`module.name` of what a command, a service or a benchmark reaches."""
    programs = set().union(*map(used_from, read_modules(PROGRAMS).values()))
    return reached(read_modules(), programs | named_in_texts())
