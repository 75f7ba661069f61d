"""A page of headings, text, tables and pictures, written as Markdown or as one HTML file that loads nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fsl_dist.plots.html_page import png_image, render_page


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading, level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    is_warning: bool = False
    """whether it is highlighted"""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, the head first."""

    rows: Sequence[Sequence[str]]
    marked: int = -1
    """number of the highlighted row (the first below the header is 0)"""
    near: tuple[int, ...] = ()
    """rows with a weaker highlight"""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG."""

    name: str
    """of its file next to the Markdown, without the extension"""
    png: bytes
    words: str
    """description of its content"""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to be typed."""

    text: str


Block = Heading | Text | Table | Picture | Code

_MARK, _NEAR, _WARNING = ' class="marked"', ' class="near"', ' class="warning"'


def render_markdown(blocks: Sequence[Block], pictures: str) -> str:
    """The page as Markdown; its pictures are looked for in the folder `pictures`."""
    return "\n\n".join(_markdown_of(block, pictures) for block in blocks) + "\n"


def render_html(blocks: Sequence[Block], title: str) -> str:
    """The page as one HTML file that contains its pictures."""
    return render_page(title, "\n".join(map(_html_of, blocks)))


def _markdown_of(block: Block, pictures: str) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Text():
            return f"**Warning:** {block.text}" if block.is_warning else block.text
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
            return f"<p{_WARNING if block.is_warning else ''}>{escape(block.text)}</p>"
        case Table():
            head, *rows = block.rows
            cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
            lines = [f"<tr>{cells}</tr>"]
            for number, row in enumerate(rows):
                cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
                mark = _MARK if number == block.marked else _NEAR if number in block.near else ""
                lines.append(f"<tr{mark}>{cells}</tr>")
            return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"
        case Picture():
            return f"<p>{png_image(block.png, block.words)}</p>"
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
