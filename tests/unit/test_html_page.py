"""The shell of all HTML pages: what comes from data is escaped, nothing is loaded, every colour has its dark counterpart."""

import re

from fsl_dist.plots.evidence_page import _STYLE as EVIDENCE_STYLE
from fsl_dist.plots.fit_report.markup import STYLE as REPORT_STYLE
from fsl_dist.plots.html_page import png_image, render_page

HOSTILE = """<script>alert("1")</script>&'"""


def test_titles_and_descriptions_are_escaped() -> None:
    page = render_page(HOSTILE, png_image(b"\x89PNG", HOSTILE, "photo"))
    assert "<script" not in page
    assert "<title>&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#x27;</title>" in page
    image = re.search(r"<img [^>]*>", page)
    assert image is not None
    assert image[0] == (
        '<img class="photo" alt="&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#x27;" '
        'src="data:image/png;base64,iVBORw==">'
    )


def test_a_page_loads_nothing() -> None:
    page = render_page("t", "<p>text</p>", "p { margin: 0; }")
    assert page.startswith("<!doctype html>\n")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "p { margin: 0; }</style>" in page
    assert not re.search(r"https?:|@import|url\(|<link|<script", page)


def test_every_colour_is_a_variable_with_a_light_and_a_dark_value() -> None:
    style = render_page("t", "", EVIDENCE_STYLE).partition("<style>")[2].partition("</style>")[0]
    light, dark = re.findall(r":root \{(.+?)\}", style, re.DOTALL)
    both = [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in (light, dark)]
    assert set(both[0]) - set(both[1]) == {"under"}, "the grey under a map is the same in both"
    rules = style.replace(light, "").replace(dark, "")
    assert not re.search(r"#[0-9a-f]{3}", rules), "a colour of one scheme alone"
    assert set(re.findall(r"var\(--(\w+)\)", rules)) == set(both[0])


def test_the_report_of_a_fit_names_colours_by_variables_too() -> None:
    blocks = re.findall(r":root \{(.+?)\}", REPORT_STYLE, re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", block)) for block in blocks)
    assert set(light) == set(dark)
    rules = REPORT_STYLE
    for block in blocks:
        rules = rules.replace(block, "")
    assert not re.search(r"#[0-9a-f]{3}", rules), "a colour of one scheme alone"
    shell = render_page("t", "").partition("<style>")[2].partition("</style>")[0]
    cards = [
        re.search(r"--card: #(\w+);", block)[1] for block in re.findall(r":root \{(.+?)\}", shell, re.DOTALL)
    ]
    for colours, card in zip((light, dark), cards, strict=True):
        for colour in colours.values():
            assert contrast(colour.removeprefix("#"), card) >= 4.5


def test_text_can_be_read_on_every_ground() -> None:
    """WCAG 2 AA: a contrast of 4.5 : 1 in both schemes."""
    style = render_page("t", "")
    for block in re.findall(r":root \{(.+?)\}", style, re.DOTALL):
        colour = dict(re.findall(r"--(\w+): #(\w+);", block))
        for text in ("ink", "muted"):
            for ground in ("paper", "card"):
                assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        assert contrast(colour["ink"], colour["marked"]) >= 4.5


def contrast(one: str, other: str) -> float:
    high, low = sorted(map(luminance, (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    long = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    levels = [int(long[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return sum(share * level for share, level in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
