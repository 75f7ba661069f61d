"""The commands that pages show: each exists, takes the options it is shown with, and its settings are settings."""

import re
import tomllib
from pathlib import Path

import click
import pytest
from page_scripts import ROOT, commands_of, inline_commands_of

from cluster.cli import fsl_dist as program
from fsl_dist.config import load_config
from index.base.errors import FslDistError

# Files that a reader has written, and names that the examples' distributions add.
OWN = re.compile(r"--config [\w/-]+\.yaml|method\.kind=supcon|backbone\.name=tiny_vit")
PAGES = [ROOT / "README.md", ROOT / "k8s" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def mistake(arguments: list[str]) -> str:
    """What is wrong with a command as it is shown, without running it; empty if nothing is."""
    command: click.Command = program
    context = click.Context(program, info_name="fsl-dist")
    rest = list(arguments)
    try:
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name, found, rest = command.resolve_command(context, rest)
            assert found is not None
            command, context = found, click.Context(found, info_name=name, parent=context)
        if "--help" in rest:
            return ""
        parsed = command.make_context(context.info_name, rest, parent=context.parent)
        if command is program.commands["submit"]:
            return mistake(list(parsed.params["arguments"]))
        if command is program.commands["train"] and not parsed.params["resume"]:
            load_config(parsed.params["config"], parsed.params["overrides"])
    except click.exceptions.ClickException as error:
        # A file that a reader has and this folder lacks is no mistake of the page.
        return "" if "does not exist" in error.message else f"{error.message} in {' '.join(arguments)}"
    except FslDistError as error:
        return f"{error} in {' '.join(arguments)}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist(page: Path) -> None:
    shown = [
        one
        for one in commands_of(page)
        if not re.search(r"…|\.\.\.|\[(?!\d)|[A-Z]\|", text := " ".join(one)) and not OWN.search(text)
    ]
    assert [found for one in shown if (found := mistake(one))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_inside_sentences_exist(page: Path) -> None:
    """They may lack arguments; what they have is right."""
    shown = [
        one for one in inline_commands_of(page) if not re.search(r"…|[|[]|COMMAND|^catalogue", " ".join(one))
    ]
    found = [found for one in shown if (found := mistake(one))]
    assert [one for one in found if re.search(r"No such|did you mean|unknown", one)] == []


def test_a_wrong_command_is_found() -> None:
    assert "No such command 'trian'" in mistake(["trian"])
    assert "--seeds" in mistake(["fit", "my_images", "--seeds", "3"])
    assert "did you mean training.epochs?" in mistake(["train", "training.epoch=3"])
    assert "did you mean training.epochs?" in mistake(["submit", "--", "train", "training.epoch=3"])
    assert mistake(["train", "--config", "own-images", "training.epochs=3"]) == ""


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        target = "".join(link)
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in slugs(file)):
            broken.append(target)
    assert broken == []


def empty_sections(text: str) -> list[str]:
    """Headings that another heading of the same or a higher level follows without a line between them."""
    text = re.sub(r"^```.*?^```", "CODE", text, flags=re.M | re.S)
    lines = [line for line in text.splitlines() if line.strip()]
    levels = [len(found[1]) if (found := re.match(r"(#+) ", line)) else 7 for line in lines]
    return [
        line for line, here, below in zip(lines, levels, [*levels[1:], 0], strict=True) if below <= here < 7
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_sections_of_a_page_have_content(page: Path) -> None:
    assert empty_sections(page.read_text(encoding="utf-8")) == []


def test_an_empty_section_is_found() -> None:
    text = "# A\n\n## B\n\ntext\n\n## C\n## D\n\n```\n# no heading\n```\n\n## E\n"
    assert empty_sections(text) == ["## C", "## E"]


def test_the_readme_is_short_and_its_badges_are_true() -> None:
    readme = (ROOT / "README.md").read_bytes()
    assert len(readme) <= 6144
    assert all(f"docs/assets/{name}".encode() in readme for name in ("overview.svg", "evidence.png"))
    assert (ROOT / "docs" / "assets" / "evidence.png").stat().st_size <= 120_000
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    badges = (ROOT / "docs" / "assets" / "badges.svg").read_text(encoding="utf-8")
    assert (project["requires-python"], project["license"]) == (">=3.11,<3.14", "Apache-2.0")
    assert "Python 3.11 to 3.13" in badges
    assert f"licence {project['license']}" in badges
