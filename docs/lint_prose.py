"""Checks the English of pages, Python texts and comments: words, long lines, long sentences.

python docs/lint_prose.py               all files of docs/prose.toml, without those it lists as skipped
python docs/lint_prose.py PATH ...      these files, and the .md, .py, .yaml, .toml and .sh files below these folders

Prints `path:line: problem` and exits with 1 where there are problems. Code, links and HTML comments are not prose.
docs/prose.toml has the limits, and the words with their replacements.
"""

import argparse
import ast
import functools
import io
import itertools
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RULES = tomllib.loads((ROOT / "docs" / "prose.toml").read_text(encoding="utf-8"))
SUFFIXES = (".md", ".py", ".yaml", ".toml", ".sh")
# One expression for all words: 60,000 lines take 2 s rather than 20.
WORDS = re.compile("|".join(f"(?P<w{i}>{word['pattern']})" for i, word in enumerate(RULES["words"])), re.I)

_FENCE = re.compile(r"\s*(```|~~~)")
_ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+")
_OPENS_A_BLOCK = re.compile(r"\s*([-*+]\s|\d+\.\s|!!!|\?\?\?|===)")
_INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_URL = re.compile(r"https?://\S+")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^>]*>")
_SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]*_]*\s+(?=["'(\[*_]*[A-Z0-9])""")
_WORD = re.compile(r"[^\W_][\w'.,/%=-]*")
_ARGUMENT = re.compile(r"\s*\*{0,2}\w[\w.*, ]{0,40}(\([^)]*\))?: ")
# A row of a layout in a docstring: columns two or more spaces apart. Two spaces behind a full stop are not a column.
_ROW = re.compile(r"\s*\S.*?[^\s.!?:] {2,}\S")
_NAMES = re.compile(r"[\w.`-]+(, [\w.`-]+)+\.?")  # a list of names alone, which is no sentence
_VALUE = re.compile(r"(?<=\w=)[a-z]\w*")  # the value in `mining.run=beside`
_CODE = re.compile(r"\s*(>>>|\.\.\.|\$ |fsl-dist |python |\.venv/)")
_HASH = re.compile(r"(?:^|\s)#+ (.*)")
_COMMAND = re.compile(
    r"\s*(>>>|\.\.\.|\$ |fsl-dist |python |\.venv/|make |pip |awk |curl |kubectl |docker |\s{3})"
)
_SECTION = re.compile(r"\s*[A-Z]\w+( \w+)?:\s*$")


@dataclass(frozen=True)
class Problem:
    """A rule that a line breaks."""

    line: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Lines that are read as one text, code and links already taken out."""

    lines: list[tuple[int, str]]


def check_markdown(text: str) -> list[Problem]:
    """Problems of a Markdown page.

    Args:
        text: the whole page.

    Returns:
        Problems in the order of their lines.
    """
    text = _COMMENT.sub(functools.partial(_replace, ""), text)
    problems = []
    paragraphs: list[Paragraph] = []
    current: list[tuple[int, str]] = []

    def end() -> None:
        nonlocal current
        if current:
            paragraphs.append(Paragraph(current))
        current = []

    for number, line in _without_code_blocks(text):
        bare = line.strip()
        if bare.startswith("|"):
            end()
            cells = re.split(r"(?<!\\)\|", _INLINE_CODE.sub("CODE", bare))
            paragraphs += [Paragraph([(number, cell)]) for cell in cells]
            continue
        if not bare:
            end()
            continue
        if bare.startswith("#") or _OPENS_A_BLOCK.match(line):
            end()
        current.append((number, _ITEM.sub("", line, count=1)))
        if bare.startswith("#"):
            end()
        problems += _check_length(number, line)
    end()
    for paragraph in paragraphs:
        problems += _check_paragraph(paragraph)
    return sorted(set(problems), key=lambda problem: problem.line)


def check_python(source: str) -> list[Problem]:
    """Problems of a Python file's docstrings, comments, help texts and messages.

    Args:
        source: the whole file.

    Returns:
        Problems in the order of their lines.
    """
    problems = []
    tree = ast.parse(source)
    lines = source.splitlines()
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and _text(node.value) is not None
    }
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant | ast.JoinedStr) or id(node) in inside:
            continue
        text = _text(node)
        if text is None:
            continue
        if id(node) in docstrings:
            for paragraph in _docstring_paragraphs(text, node.lineno):
                problems += _check_paragraph(paragraph)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                problems += _check_length(number, lines[number - 1])
        elif _is_message(text) and "```" in text:  # a page that a program writes
            problems += [
                Problem(node.lineno + problem.line - 1, problem.text) for problem in check_markdown(text)
            ]
        elif _is_message(text):
            span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            paragraphs = [Paragraph([(node.lineno, part)]) for part in re.split(r"\n\s*\n", text)]
            for problem in itertools.chain.from_iterable(map(_check_paragraph, paragraphs)):
                word = problem.text.split("'")[1] if problem.text.startswith("'") else None
                line = next((n for n in span if word and word in lines[n - 1]), node.lineno)
                problems.append(Problem(line, problem.text))
    for paragraph in _comments(source):
        problems += _check_paragraph(paragraph)
        for number, _ in paragraph.lines:
            problems += _check_length(number, lines[number - 1])
    return sorted(set(problems), key=lambda problem: problem.line)


def check_comments(text: str) -> list[Problem]:
    """Problems of the comments of a YAML, TOML, shell or make file.

    Args:
        text: the whole file.

    Returns:
        Problems in the order of their lines.
    """
    problems = []
    current: list[tuple[int, str]] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        match = _HASH.search(line)
        is_alone = line.lstrip().startswith("#")
        if current and not (is_alone and match):
            problems += _check_paragraph(Paragraph(current))
            current = []
        if match:
            if not _COMMAND.match(match[1]):
                current.append((number, match[1]))
            if is_alone and not _COMMAND.match(match[1]):
                problems += _check_length(number, line)
            elif not is_alone:
                problems += _check_paragraph(Paragraph(current))
                current = []
    return sorted(set(problems), key=lambda problem: problem.line)


def check_yaml(text: str) -> list[Problem]:
    """Problems of a YAML file's comments, and of the sentences among its values.

    Args:
        text: the whole file.

    Returns:
        Problems in the order of their lines.
    """
    problems = check_comments(text)
    waiting = [node for node in yaml.compose_all(text, yaml.CSafeLoader) if node is not None]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            if _is_message(node.value):
                problems += _check_paragraph(Paragraph([(node.start_mark.line + 1, node.value)]))
        else:
            waiting += [
                each for item in node.value for each in (item if isinstance(item, tuple) else (item,))
            ]
    return sorted(set(problems), key=lambda problem: problem.line)


def _replace(new: str, match: re.Match[str]) -> str:
    """The new text and the line ends of the old one, so that lines keep their numbers."""
    return new + "\n" * match[0].count("\n")


def _without_code_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; those of a fenced or indented code block are empty."""
    is_fenced = is_indented = False
    is_in_block = False
    before = ""
    for number, line in enumerate(text.split("\n"), 1):
        if _FENCE.match(line):
            is_fenced = not is_fenced
            yield number, ""
            before = ""
            continue
        indents = line.startswith(("    ", "\t"))
        if not is_fenced and line.strip():
            # Text below a list item or an admonition is indented as code is.
            is_indented = indents and not is_in_block and (is_indented or not before.strip())
            if not indents:
                is_in_block = bool(_OPENS_A_BLOCK.match(line)) or (is_in_block and line.startswith("  "))
        yield number, "" if is_fenced or is_indented else line
        before = line


def _check_length(number: int, line: str) -> list[Problem]:
    limit = RULES["max_line"]
    shown = _URL.sub("", _LINK.sub(r"\1", line))
    if len(line) <= limit or len(shown) <= limit or line.strip().startswith("|"):
        return []
    return [Problem(number, f"{len(line)} characters; a line has at most {limit}")]


def _check_paragraph(paragraph: Paragraph) -> list[Problem]:
    """Problems of one text: refused words, and sentences that are too long."""
    text = "\n".join(line for _, line in paragraph.lines)
    text = _LINK.sub(r"\1", _INLINE_CODE.sub(functools.partial(_replace, "CODE"), text))
    text = _VALUE.sub("CODE", _TAG.sub(functools.partial(_replace, ""), _URL.sub("URL", text)))
    starts = [number for number, _ in paragraph.lines]

    def line_at(position: int) -> int:
        return starts[min(text.count("\n", 0, position), len(starts) - 1)]

    flat = text.replace("\n", " ")
    problems = []
    for match in WORDS.finditer(flat):
        word = RULES["words"][int((match.lastgroup or "w0")[1:])]
        problems.append(Problem(line_at(match.start()), f"'{match[0]}': write {word['say']}"))
    position = 0
    for sentence in _SENTENCE_END.split(flat):
        start = flat.index(sentence, position)
        position = start + len(sentence)
        count = len(_WORD.findall(sentence))
        if count > RULES["max_sentence"] and not _NAMES.fullmatch(sentence.strip()):
            problems.append(
                Problem(line_at(start), f"{count} words; a sentence has at most {RULES['max_sentence']}")
            )
    return problems


def _text(node: ast.AST) -> str | None:
    """The text of a string, CODE for each value that an f-string puts in; None for other nodes."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "CODE" for part in node.values)
    return None


def _is_message(text: str) -> bool:
    """Whether a string is a sentence for people: four words, most of it letters, no markup or program."""
    words = text.split()
    plain = [word for word in words if re.fullmatch(r"[\"'(`]*[A-Za-z][A-Za-z'-]*[.,:;)\"'`?]*", word)]
    return (
        len(plain) >= 4
        and 2 * len(plain) >= len(words)
        and not re.search(r"</|\{\n|;\n|^\s*(import|from \S+ import) ", text, re.M)
    )


def _docstring_paragraphs(text: str, first: int) -> Iterator[Paragraph]:
    """Paragraphs of a docstring; each argument, list item, section heading and row of a layout is one."""
    current: list[tuple[int, str]] = []
    for number, line in _without_code_blocks_of_docstring(text):
        bare = line.strip()
        starts = (
            _ITEM.match(line) or _ARGUMENT.match(line) or _ROW.match(line) or bare.startswith(("|", "├", "└"))
        )
        if (not bare or starts) and current:
            yield Paragraph(current)
            current = []
        if bare and not _SECTION.match(line):
            current.append((first + number, _ITEM.sub("", line, count=1)))
    if current:
        yield Paragraph(current)


def _without_code_blocks_of_docstring(text: str) -> Iterator[tuple[int, str]]:
    """Lines numbered from 0; examples, fenced blocks and what follows `::` are empty."""
    is_fenced = False
    literal: int | None = None  # the indentation of the line that ended with `::`
    for number, line in enumerate(text.split("\n")):
        indent = len(line) - len(line.lstrip())
        if _FENCE.match(line):
            is_fenced = not is_fenced
            line = ""
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        is_code = is_fenced or literal is not None or _CODE.match(line)
        yield number, "" if is_code else line
        if not is_code and line.rstrip().endswith("::"):
            literal = indent


def _comments(source: str) -> Iterator[Paragraph]:
    """Comments, those on successive lines as one text."""
    current: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or re.match(r"#(!|\s*(type:|noqa|ruff:|pragma))", token.string):
            continue
        is_alone = token.line.lstrip().startswith("#")
        if current and not (is_alone and current[-1][0] == token.start[0] - 1):
            yield Paragraph(current)
            current = []
        current.append((token.start[0], token.string.lstrip("# ")))
    if current:
        yield Paragraph(current)


@functools.cache
def listed(key: str) -> frozenset[Path]:
    """Files that a list of patterns in docs/prose.toml names.

    Args:
        key: `files` or `skipped`.

    Returns:
        Paths of files; those in hidden folders are left out.
    """
    found = (path for pattern in RULES[key] for path in ROOT.glob(pattern))
    return frozenset(
        path for path in found if not any(part[0] == "." for part in path.relative_to(ROOT).parts)
    )


def check_file(path: Path) -> list[Problem]:
    """Problems of a file, by its suffix: a page, a Python or YAML file, or a file with `#` comments."""
    text = path.read_text(encoding="utf-8")
    checks = {".md": check_markdown, ".py": check_python, ".yaml": check_yaml}
    return checks.get(path.suffix, check_comments)(text)


def main() -> None:
    """Check the named files, or all that are not skipped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    paths = parser.parse_args().paths
    for path in paths:
        if not path.exists():
            parser.error(f"{path} does not exist")
    files = [
        file
        for path in paths
        for file in ([path] if path.is_file() else [each for s in SUFFIXES for each in path.rglob(f"*{s}")])
    ]
    num_problems = 0
    for file in sorted({file.resolve() for file in files} if paths else listed("files") - listed("skipped")):
        for problem in check_file(file):
            num_problems += 1
            print(
                f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}:{problem.line}: {problem.text}"
            )
    sys.exit(1 if num_problems else 0)


if __name__ == "__main__":
    main()
