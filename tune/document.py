"""A page of headings, text, tables and pictures, written as Markdown or as one HTML file that loads nothing."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading, level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, the head first."""

    rows: Sequence[Sequence[str]]
    marked: int = -1
    """row (the first below the head is 0) that stands out"""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG."""

    name: str
    """of its file beside the Markdown, without the ending"""
    png: bytes
    words: str
    """what it shows"""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to be typed."""

    text: str


Block = Heading | Text | Table | Picture | Code

_MARK = ' class="marked"'

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1b1b; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9em; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.marked { background: #e3f1fb; font-weight: 600; }
img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: 0.7rem; overflow-x: auto; }
"""


def render_markdown(blocks: Sequence[Block], pictures: str) -> str:
    """The page as Markdown; its pictures are looked for in the folder `pictures`."""
    return "\n\n".join(_markdown_of(block, pictures) for block in blocks) + "\n"


def render_html(blocks: Sequence[Block], title: str) -> str:
    """The page as one HTML file: pictures inside, no script, and a policy that forbids loading anything."""
    body = "\n".join(map(_html_of, blocks))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _markdown_of(block: Block, pictures: str) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Text():
            return block.text
        case Table():
            head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in block.rows]
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join("| " + " | ".join(line) + " |" for line in lines)
        case Picture():
            return f"![{block.words}]({pictures}/{block.name}.png)"
        case Code():
            return "\n".join(f"    {line}" for line in block.text.split("\n"))


def _html_of(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{escape(block.text)}</p>"
        case Table():
            head, *rows = block.rows
            cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
            lines = [f"<tr>{cells}</tr>"]
            for number, row in enumerate(rows):
                cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
                lines.append(f"<tr{_MARK if number == block.marked else ''}>{cells}</tr>")
            return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"
        case Picture():
            data = base64.b64encode(block.png).decode("ascii")
            return f'<p><img alt="{escape(block.words)}" src="data:image/png;base64,{data}"></p>'
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
