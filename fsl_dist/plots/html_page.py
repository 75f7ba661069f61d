"""The shell of every HTML page that is written: one stylesheet for light and dark, no script, nothing loaded."""

import base64
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f23; --muted: #5c626b; --paper: #f6f6f4; --card: #fff; --line: #d9dadd;
  --accent: #0072b2; --quiet: #9aa0a8; --under: #8a8a8a; --marked: #dcecf8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9ec; --muted: #a4a9b2; --paper: #15171a; --card: #1f2226; --line: #363a41; --accent: #56b4e9;
    --quiet: #6d737c; --marked: #17364b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 2rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.125rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.marked, tr.near { background: var(--marked); }
tr.marked { font-weight: 600; }
p.warning { background: var(--marked); border-left: .3rem solid var(--accent); padding: .5rem .7rem; }
img { max-width: 100%; height: auto; }
pre { background: var(--card); border: 1px solid var(--line); padding: .7rem; overflow-x: auto; }
"""


def render_page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page, whose content policy forbids scripts and loading anything.

    Args:
        title: Plain text.
        body: HTML; what comes from data must be escaped in it.
        style: CSS rules of this page, after those that all pages share.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def png_image(png: bytes, alt: str, kind: str = "") -> str:
    """An `<img>` that contains a PNG file; `kind` is its CSS class."""
    of_kind = f'class="{kind}" ' if kind else ""
    data = base64.b64encode(png).decode("ascii")
    return f'<img {of_kind}alt="{escape(alt)}" src="data:image/png;base64,{data}">'
