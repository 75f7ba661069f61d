"""Writes docs/reference/configuration.md from the dataclasses of the configuration.

    .venv/bin/python docs/make_configuration.py            writes the page
    .venv/bin/python docs/make_configuration.py --check    exits with 1 if the page is stale

Names, types, ranges and defaults come from the classes. The meaning of a key is the text under its field, which `ast`
reads.
"""

import argparse
import ast
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fsl_dist.config import RunConfig
from fsl_dist.methods.method import MethodSettings
from fsl_dist.methods.registry import BUILT_IN, find_methods
from index.base.setting_types import range_of
from index.base.settings import dump

PAGE = Path(__file__).parent / "reference" / "configuration.md"
HEAD = """# Configuration

`python docs/make_configuration.py` writes this page. To change it, edit the dataclasses.

Dotted keys configure a run. A YAML file (`--config FILE`) overrides the defaults below, and `key=value` on the command
line overrides the file. An unknown key, a key of another variant, `true` instead of a number, and a repeated key are
errors (exit 2), before anything is written. The resolved configuration is `config.yaml` in the run's folder.

A value on the command line is YAML: `evaluation.k_p=[1,5]`, `backbone.weights=weights.pth`, `training.lr=1e-3`.
`method.kind` selects the method and the keys of `method`; the default kind is `deep_knn`. If the command line names
another kind than the file (`method.kind=pcn`, `index.kind=flat`), the file's keys that the new kind does not support
are dropped, with a warning. Keys on the command line must be valid for the new kind.

A run's YAML can start from another file and override its keys: `base: ours.yaml`, relative to its folder, or the name
of a shipped configuration, `base: own-images`. The base cannot have a base itself. The stored `config.yaml` contains
all keys and no base.

`fsl-dist index build` takes the keys of `index` without their prefix; `fsl-dist evaluate` takes those of `evaluation`.
"""


def read_meanings(cls: type) -> dict[str, str]:
    """Field → the text under it in the source of the dataclass `cls`; fields without a text are left out."""
    (body,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    meanings, field = {}, ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and field:
            meanings[field] = " ".join(str(node.value.value).split())
            field = ""
        else:
            field = ""
    return meanings


def describe_type(hint: Any) -> str:
    """A type in the words of a YAML file, with its range."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{describe_type(args[0])}, {range_of(hint)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe_type, args))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin is tuple:
        if typing.get_origin(args[0]) is Literal:
            return f"list of {describe_type(args[0])}"
        kind, comma, bounds = describe_type(args[0]).partition(",")
        return f"list of {kind}s{comma}{bounds}"
    names: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names[hint]


def variants_of(hint: Any) -> list[type]:
    """The settings classes a field may hold: one, or those of all built-in methods."""
    if hint is MethodSettings:
        return [find_methods()[kind]() for kind in BUILT_IN]
    return [hint] if dataclasses.is_dataclass(hint) else []


def describe_class(cls: type, part: str) -> Iterator[str]:
    """The table of one dataclass's keys, each with `part` before it."""
    meanings, hints = read_meanings(cls), typing.get_type_hints(cls, include_extras=True)
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, default in dump(cls()).items():
        if name == "kind" and len(typing.get_args(hints[name])) == 1 and name not in meanings:
            continue  # the heading names it
        shown = "[" + ", ".join(map(show, default)) + "]" if isinstance(default, list) else show(default)
        cells = [f"`{part}.{name}`", describe_type(hints[name]), f"`{shown}`", meanings[name]]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def show(value: object) -> str:
    """A default as a YAML file would say it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or '""'
    assert isinstance(value, int | float)
    return f"{value:g}" if isinstance(value, float) else str(value)


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    hints = typing.get_type_hints(RunConfig)
    for field in dataclasses.fields(RunConfig):
        variants = variants_of(hints[field.name])
        lines += [f"## {field.name}", ""]
        for cls in variants:
            summary = (cls.__doc__ or "").strip().partition("\n")[0]
            kind = f"### method.kind={cls().kind}\n\n" if len(variants) > 1 else ""
            lines += [f"{kind}{summary}", "", *describe_class(cls, field.name), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is old")
    if not parser.parse_args().check:
        PAGE.write_text(render(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != render():
        sys.exit(f"{PAGE.name} is old: run python docs/make_configuration.py")


if __name__ == "__main__":
    main()
