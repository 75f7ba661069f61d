"""Display of results in a notebook."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table as HTML; a cell that is a number is aligned to the right.

    Args:
        head: names of the columns.
        rows: the cells of each row.
        caption: a line above the table.

    Returns:
        A `<table>` element, everything escaped.
    """

    def cell(value: object, tag: str) -> str:
        is_text = isinstance(value, str) and not value[:1].isdigit()
        return f'<{tag} style="text-align:{"left" if is_text else "right"}">{escape(str(value))}</{tag}>'

    lines = [
        "<tr>" + "".join(cell(value, tag) for value in row) + "</tr>"
        for tag, several in (("th", [head]), ("td", rows))
        for row in several
    ]
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}{''.join(lines)}</table>"


def html_frame(page: str, *, height: int = 640) -> str:
    """A whole HTML page for a cell's output, isolated from the notebook's own styles.

    Args:
        page: the document.
        height: of the frame, pixels.

    Returns:
        An `<iframe>` element that contains the page.
    """
    return (
        f'<iframe srcdoc="{escape(page)}" sandbox style="width:100%;height:{height}px;border:0" '
        'loading="lazy"></iframe>'
    )
