"""Lines of code of the four packages at some revisions: without blank lines, comments and docstrings; benchmarks are
not counted.

python -m benchmarks.code_lines 29fc446 HEAD
"""

import ast
import collections
import io
import subprocess
import sys
import tokenize

_PACKAGES = ("cluster/", "tune/", "fsl_dist/", "index/")
_NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)


def count_code(source: str) -> int:
    """Lines of `source` that hold a token of code."""
    texts: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            texts |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - texts)


def count_folders(revision: str) -> dict[str, int]:
    """Lines of code by folder."""
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", revision], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = collections.Counter()
    for name in listed.stdout.splitlines():
        if name.startswith(_PACKAGES) and name.endswith(".py") and not name.startswith("cluster/bench/"):
            shown = subprocess.run(
                ["git", "show", f"{revision}:{name}"], capture_output=True, text=True, check=True
            )
            found[name.rpartition("/")[0]] += count_code(shown.stdout)
    return found


if __name__ == "__main__":
    for revision in sys.argv[1:]:
        folders = count_folders(revision)
        print(f"{revision}: {sum(folders.values())}")
        for folder, lines in sorted(folders.items()):
            print(f"    {folder:<24}{lines:>7}")
