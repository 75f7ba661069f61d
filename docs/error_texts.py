"""Finds the text of every error that the packages raise, by reading their source; nothing is imported or run.

A text is a template: names in capitals stand for values, such as `shard SHARD has NUMBER vectors`.
"""

import ast
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cluster", "tune", "fsl_dist", "index")
ROOTS = {
    "FslDistError": "",
    "ClickException": "",
    "HTTPException": "",
    "Stopped": "",
    "ValueError": "fsl_dist/data/",
}
"""base class → where it counts: a ValueError of the data packages becomes the reason why an image is left out"""
EXITS = {
    "FslDistError": "1",
    "RequestError": "2",
    "ClickException": "2",
    "HTTPException": "",
    "Stopped": "130, 143",
    "ValueError": "1",
}
"""base class → exit code; that of a class is its nearest base's, and a service continues after an HTTPException"""
GAP = "\0"
"""around a placeholder, until the template is finished: text that no message holds"""


@dataclass(frozen=True, slots=True, order=True)
class ErrorText:
    """A message of one error class."""

    path: str
    """source file, from the repository's root"""
    text: str
    """with placeholders in capitals"""
    exit_code: str
    pattern: str
    """a regular expression for the messages"""


@dataclass(frozen=True)
class Module:
    """One source file."""

    path: str
    tree: ast.Module

    @cached_property
    def nodes(self) -> list[tuple[ast.AST, ast.FunctionDef | None, str]]:
        """Every node with the function and the name of the class around it."""
        return list(_walk(self.tree))

    @cached_property
    def classes(self) -> list[ast.ClassDef]:
        """All classes."""
        return [node for node, _, _ in self.nodes if isinstance(node, ast.ClassDef)]

    @cached_property
    def functions(self) -> Mapping[str, ast.FunctionDef]:
        """Functions and methods by name."""
        return {node.name: node for node, _, _ in self.nodes if isinstance(node, ast.FunctionDef)}

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """Values of the module's names that are assigned once."""
        return {
            node.targets[0].id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }


def read_modules() -> list[Module]:
    """Every source file of the packages."""
    return [
        Module(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8")))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name; empty for other expressions."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def find_classes(modules: list[Module]) -> dict[str, str]:
    """Error class → the class of `ROOTS` or `EXITS` that is its nearest base."""
    found = {name: name for name in (*ROOTS, *EXITS)}
    bases = {
        node.name: [name_of(base) for base in node.bases] for module in modules for node in module.classes
    }
    while new := {
        name: found[base]
        for name, above in bases.items()
        for base in above
        if name not in found and base in found
    }:
        found |= new
    return found


def find_texts() -> list[ErrorText]:
    """All messages of all errors, sorted by file; each once for a file."""
    modules = read_modules()
    classes = find_classes(modules)
    own = {
        node.name
        for module in modules
        for node in module.classes
        if node.name in classes and _has_own_text(node)
    }
    shared: dict[str, ast.expr] = {}
    for module in modules:
        shared |= {name: value for name, value in module.constants.items() if isinstance(value, ast.Constant)}
    texts: dict[tuple[str, str], ErrorText] = {}
    for module in modules:
        for name, argument, function in _find_messages(module, classes, own):
            base = classes[name]
            if not module.path.startswith(ROOTS.get(base, "")):
                continue
            for template in _Reader(module, shared, function).read(argument):
                literal = re.sub(f"{GAP}[^{GAP}]*{GAP}", "", template)
                if len(re.findall(r"[A-Za-z]{2,}", literal)) < 2:
                    continue  # the text of another error, passed on
                text = " ".join(template.replace(GAP, "").split())
                pattern = re.sub(rf"{GAP}[^{GAP}]*{GAP}", GAP, " ".join(template.split()))
                pattern = ".*?".join(map(re.escape, pattern.split(GAP)))
                texts.setdefault((module.path, text), ErrorText(module.path, text, EXITS[base], pattern))
    return sorted(texts.values())


def _find_messages(
    module: Module, classes: Mapping[str, str], own: set[str]
) -> Iterator[tuple[str, ast.expr, ast.FunctionDef | None]]:
    """(class, message, function around it) of every error that `module` makes.

    The classes `own` take other arguments than a message: theirs is what they pass to their base, or what
    `__str__` returns.
    """
    for node, function, owner in module.nodes:
        if (
            isinstance(node, ast.Return)
            and owner in own
            and function
            and function.name == "__str__"
            and node.value
        ):
            yield owner, node.value, function
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = name_of(node.func)
        if called == "__init__" and owner in own:
            yield owner, node.args[0], function
        elif called in classes and called not in own:
            at = 1 if called == "HTTPException" else 0
            if len(node.args) > at:
                yield called, node.args[at], function


def _has_own_text(node: ast.ClassDef) -> bool:
    """Whether a class makes its message itself: in `__str__`, or of what its `__init__` is given."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and inner.name == "__str__":
            return True
        if isinstance(inner, ast.Call) and name_of(inner.func) == "__init__" and inner.args:
            return not isinstance(inner.args[0], ast.Name)
    return False


def _walk(
    node: ast.AST, function: ast.FunctionDef | None = None, owner: str = ""
) -> Iterator[tuple[ast.AST, ast.FunctionDef | None, str]]:
    for child in ast.iter_child_nodes(node):
        inside = child if isinstance(child, ast.FunctionDef) else function
        within = child.name if isinstance(child, ast.ClassDef) else owner
        yield child, inside, within
        yield from _walk(child, inside, within)


class _Reader:
    """Turns the expression of a message into templates."""

    def __init__(
        self, module: Module, shared: MutableMapping[str, ast.expr], function: ast.FunctionDef | None
    ) -> None:
        self._module = module
        self._constants = ChainMap(module.constants, shared)
        self._function = function
        self._seen: set[str] = set()

    def read(self, node: ast.expr) -> list[str]:
        """The texts that `node` may be, placeholders between two `GAP`."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(self._read_part(part) for part in parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [one + other for one in self.read(left) for other in self.read(right)]
            case ast.IfExp(body=body, orelse=orelse):
                return [*self.read(body), *self.read(orelse)]
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.read(value)]
            case ast.Name(id=name):
                return self._read_name(name) or [_placeholder(node)]
            case ast.Call(func=called) if name_of(called) in self._module.functions:
                return self._read_returns(name_of(called)) or [_placeholder(node)]
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
                return [re.sub(r"\{[^}]*\}", f"{GAP}VALUE{GAP}", text)]
        return [_placeholder(node)]

    def _read_part(self, part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        assert isinstance(part, ast.FormattedValue)
        value = part.value
        if isinstance(value, ast.Name) and isinstance(known := self._value_of(value.id), ast.Constant):
            return str(known.value)
        if isinstance(value, ast.IfExp) and "" in (
            branches := [*self.read(value.body), *self.read(value.orelse)]
        ):
            return (
                f"{GAP}…{GAP}" if not any(branches) else f"{GAP}[{''.join(branches).replace(GAP, '')}]{GAP}"
            )
        return _placeholder(value)

    def _value_of(self, name: str) -> ast.expr | None:
        """The value of a constant, or of a name that the function around the message assigns only once."""
        assigned = [
            node.value
            for node in ast.walk(self._function or ast.Module([], []))
            if isinstance(node, ast.Assign) and name in map(name_of, node.targets)
        ]
        return assigned[0] if len(assigned) == 1 else self._constants.get(name)

    def _read_name(self, name: str) -> list[str]:
        if name in self._seen:
            return []
        self._seen.add(name)
        if name in self._constants:
            return self.read(self._constants[name])
        return [
            text
            for node in ast.walk(self._function or ast.Module([], []))
            if isinstance(node, ast.Assign) and name in map(name_of, node.targets)
            for text in self.read(node.value)
        ]

    def _read_returns(self, name: str) -> list[str]:
        if name in self._seen:
            return []
        self._seen.add(name)
        function = self._module.functions[name]
        inner = _Reader(self._module, self._constants, function)
        inner._seen = self._seen
        returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
        return [text for value in returned for text in inner.read(value)]


def _placeholder(node: ast.expr) -> str:
    return f"{GAP}{_name_value(node)}{GAP}"


def _name_value(node: ast.expr) -> str:
    """A word in capitals for the value of an expression."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            words = {
                "error": "REASON",
                "reason": "REASON",
                "strerror": "REASON",
                "n": "NUMBER",
                "num": "NUMBER",
            }
            return words.get(name, name.strip("_").upper())
        case ast.Call(func=ast.Attribute(attr="join"), args=[inner]):
            return f"{_name_value(inner)}, …"
        case ast.Call(func=ast.Name(id="len" | "sum" | "int" | "max" | "min")):
            return "NUMBER"
        case ast.Call(func=ast.Name(), args=[first, *_]):
            return _name_value(first)
        case ast.Call(func=ast.Attribute(value=value)):
            return _name_value(value)
        case ast.Subscript(value=value) | ast.Starred(value=value) | ast.Await(value=value):
            return _name_value(value)
        case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element):
            return _name_value(element)
        case ast.BoolOp(values=[first, *_]):
            return _name_value(first)
        case ast.IfExp(body=body):
            return _name_value(body)
        case ast.BinOp(left=left, op=ast.Div()):  # a path
            return _name_value(left)
        case ast.BinOp() | ast.UnaryOp():
            return "NUMBER"
    return "VALUE"
