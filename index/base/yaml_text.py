"""Convert YAML text to plain data and back, without YAML's surprises.

Scalars follow YAML 1.2: only true/false are booleans, `1e-3` is a float, `010` is ten; a date is text, and so is
`.nan`. Errors are: a repeated key, a key that is not text, a tag that would build an object, a value that contains
itself.
"""

import re
from typing import Any

import yaml

from index.base.errors import ConfigError

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$")
_FLOAT = re.compile(r"^(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF))$")
_MOST_NODES = 1_000_000
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
# Order decides: "12" is an int before it is a float.
_SCALARS = (("bool", _BOOL), ("int", _INT), ("float", _FLOAT), ("null", _NULL))


def read_yaml(text: str, place: str) -> Any:
    """Return the plain data of one YAML document; None if it is empty.

    Raises ConfigError with `place` (a file name) and the line if the text is not YAML or breaks a rule of this module.
    """
    try:
        loader = _Loader(text)
        loader.name = place
        node = loader.get_single_node()
        if node is None:
            return None
        _check_aliases(node, place)
        return loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{place}: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{place}{where}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{place}: not YAML: {' '.join(str(error).split())}") from None


def _check_aliases(root: yaml.Node, place: str) -> None:
    """Refuse an alias inside its own value, and aliases of aliases that expand to millions of values."""
    num_nodes, within = 0, set[int]()

    def walk(node: yaml.Node) -> None:
        nonlocal num_nodes
        num_nodes += 1
        where = f"{place}, line {node.start_mark.line + 1}"
        if id(node) in within:
            raise ConfigError(f"{where}: an alias (*) is inside the value that it refers to")
        if num_nodes > _MOST_NODES:
            raise ConfigError(f"{where}: its aliases (*) unfold to more than {_MOST_NODES} values")
        within.add(id(node))
        for below in node.value if isinstance(node, yaml.CollectionNode) else ():
            for part in below if isinstance(below, tuple) else (below,):
                walk(part)
        within.remove(id(node))

    walk(root)


def write_yaml(data: dict[str, Any]) -> str:
    """YAML text that `read_yaml` reads back to equal data; keys keep their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)


def name_of(value: Any) -> str:
    """What YAML calls the type of `value`."""
    names = {
        dict: "mapping",
        str: "text",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars that refuses repeated keys and keys that are not text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(
                    f"{self.name}, line {line}: key {key!r} is a {name_of(key)}; keys must be text (quote it)"
                )
            if key in seen:
                raise ConfigError(f"{self.name}, line {line}: key {key} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text which this loader or a YAML 1.1 reader would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line breaks to a space unless the text is double-quoted.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _SCALARS:
    # None as first characters: the rule is tried for every plain scalar, which a configuration can afford.
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
