"""The commands that pages show: each exists, takes the options it is shown with, and its settings are settings."""

import re
from pathlib import Path

import click
import pytest
from page_scripts import ROOT, commands_of

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


def test_a_wrong_command_is_found() -> None:
    assert "No such command 'trian'" in mistake(["trian"])
    assert "--seeds" in mistake(["fit", "my_images", "--seeds", "3"])
    assert "did you mean training.epochs?" in mistake(["train", "training.epoch=3"])
    assert "did you mean training.epochs?" in mistake(["submit", "--", "train", "training.epoch=3"])
    assert mistake(["train", "--config", "own-images", "training.epochs=3"]) == ""
