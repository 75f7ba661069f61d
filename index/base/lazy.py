"""Public names of a package that are imported on first use, so that importing the package costs nothing.

A package lists each name once, as an import that type checkers and editors read:

    if TYPE_CHECKING:
        from fsl_dist.run import Run as Run

    if not TYPE_CHECKING:
        __getattr__, __dir__, __all__ = public_names(__name__, __file__)
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def public_names(
    package: str, file: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Create `__getattr__`, `__dir__` and `__all__` of a package from the `if TYPE_CHECKING:` imports in its source
    `file`.

    Args:
        package: the package's `__name__`.
        file: its `__file__`.

    Returns:
        The values for the package's three special names.
    """
    blocks = [
        node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If)
    ]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        if homes[name] == package:
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(homes), sorted(homes)
