"""Tables of the papers: every one names systems that exist, and is shown next to the paper's figures as it was measured."""

import csv
import io
import re
from pathlib import Path

import pytest

from cluster.commands.plot import plot
from fsl_dist.shipped import find_config
from index.base.errors import ConfigError, RequestError
from tune.tables.pictures import command_of
from tune.tables.planned import RowResult, cells_of, plan_run
from tune.tables.report import commands_of, draw, render_csv, render_markdown, show_score, summarise
from tune.tables.tables import (
    EXPERIMENTS,
    Column,
    Picture,
    Row,
    Table,
    config_of,
    families_of,
    list_tables,
    on_family,
    read_family,
    read_table,
)

TABLES = list_tables()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_can_be_run_on_a_family(name: str) -> None:
    table = TABLES[name]
    assert table.family in families_of(table)
    for row in table.rows:
        cells = cells_of(table, row)
        assert any(cells), row.name
        for paper in (*row.paper, *(cell for cells in row.paper_on.values() for cell in cells)):
            assert not paper or re.fullmatch(r"\d+\.\d+( ± \d+\.\d+)?[¹²³]?", paper), paper


@pytest.mark.parametrize("name", TABLES)
def test_the_commands_of_pictures_can_be_typed(name: str) -> None:
    for picture in TABLES[name].pictures:
        words = command_of(picture, [Path("RUN")] * len(picture.rows), Path("p.png")).split()
        assert words[:3] == ["fsl-dist", "plot", picture.plot]
        context = plot.commands[picture.plot].make_context(picture.plot, words[3:])
        assert context.params["out"] == Path("p.png")


def test_a_family_has_the_papers_figures_of_its_own_data() -> None:
    table = read_table("dknn-2")
    row_of = {row.name: row for row in on_family(table, "sd198").rows}
    assert on_family(table, "sd198").paper_data == "SD-198"
    assert row_of["kNN, K_p 1"].paper == ("27.6", "28.4", "29.2")
    assert row_of["deep kNN (data set), K_p 5"].paper == ()
    assert "kNN (VGG19), K_p 1" in row_of
    here = on_family(table, "ham10000")
    assert here.paper_data == "Skin-7"
    # HAM10000's small family has no VGG19, and may lack it.
    assert "kNN (VGG19), K_p 1" not in {row.name for row in here.rows}
    assert next(row for row in here.rows if row.name == "kNN, K_p 1").paper[0] == "75.6"


def test_a_picture_draws_rows_of_its_table() -> None:
    with pytest.raises(ConfigError, match="pictures: 'a' draws 'PCN', which is not a row with a system"):
        Table(
            title="t",
            paper_data="d",
            family="omniglot",
            columns=(Column(title="a", metric="m"),),
            rows=(Row(name="PN", system="pn"),),
            pictures=(Picture(name="a", plot="curves", rows=("PN", "PCN")),),
        )


@pytest.mark.parametrize("family", sorted(path.parent.name for path in EXPERIMENTS.glob("*/family.yaml")))
def test_a_family_says_where_its_images_come_from(family: str) -> None:
    found = read_family(family)
    assert found.title
    assert found.source
    assert found.pack


def test_names_that_do_not_exist() -> None:
    with pytest.raises(RequestError, match=r"there is no table 'pcn-17'; there are .*pcn-1"):
        read_table("pcn-17")
    with pytest.raises(RequestError, match=r"family=birds is unknown; there are .*omniglot"):
        read_family("birds")


def test_a_row_has_a_cell_a_column() -> None:
    with pytest.raises(ConfigError, match="'PN' has 2 paper for 1 columns"):
        Table(
            title="t",
            paper_data="d",
            family="omniglot",
            columns=(Column(title="a", metric="m"),),
            rows=(Row(name="PN", system="pn", paper=("1.0", "2.0")),),
        )


def test_a_run_is_named_by_what_differs_from_its_yaml(tmp_path: Path) -> None:
    def folder(*train: str) -> str:
        return plan_run(tmp_path, "omniglot", "pcn", train, "", 3, ()).folder.relative_to(tmp_path).as_posix()

    assert folder() == "omniglot/pcn/seed-3"
    # What the YAML holds already makes no other run: Table 3's "memory 0.5" is Table 1's PCN.
    assert folder("method.memory=0.5", "method.temperature=1") == "omniglot/pcn/seed-3"
    assert folder("method.memory=0.0") == "omniglot/pcn,memory=0.0/seed-3"


def test_a_run_that_starts_from_another_names_it(tmp_path: Path) -> None:
    run = plan_run(tmp_path, "omniglot", "pcn", (), "pn", 1, ("backbone.weights=FILE",))
    assert run.after is not None
    assert run.after.folder == tmp_path / "omniglot" / "pn" / "seed-1"
    assert f"backbone.weights={run.after.folder}" in run.settings
    assert "backbone.weights=FILE" not in run.settings
    assert "backbone.weights=FILE" in run.after.settings


def test_scores_are_summed_up_over_seeds_or_over_the_draws_of_one() -> None:
    assert summarise([]) is None
    share, number = Column(title="acc"), Column(title="rel", is_count=True)
    assert show_score([], share) == "—"
    assert show_score([0.5], share) == "50.0"
    assert show_score([{"mean": 0.475, "std": 0.011, "n": 10}], share) == "47.5 ± 1.1"
    assert show_score([0.4, 0.6], share) == "50.0 ± 10.0"
    assert show_score([1.505, 1.495], number) == "1.500 ± 0.005"
    assert summarise([{"mean": 0.4, "std": 0.1, "n": 10}, {"mean": 0.6, "std": 0.2, "n": 10}]) == (
        pytest.approx(50.0),
        pytest.approx(10.0),
        2,
    )


def results_of(table: Table, tmp_path: Path) -> list[RowResult]:
    first, second = table.rows
    runs = (plan_run(tmp_path, "omniglot", "pn", (), "", 0, ()),)
    scores: tuple[list[object], ...] = ([{"mean": 0.4, "std": 0.01, "n": 10}], [0.5])
    return [
        RowResult(first, runs, cells_of(table, first), scores),
        RowResult(second, (), cells_of(table, second), ([], []), "it failed"),
    ]


@pytest.mark.parametrize("x_title", ["", "shots"])
def test_a_table_is_shown_beside_the_paper(tmp_path: Path, x_title: str) -> None:
    table = Table(
        title="Table 9",
        paper_data="Dermnet",
        family="omniglot",
        x_title=x_title,
        columns=(
            Column(title="all", metric="mca/base_novel"),
            Column(title="novel", metric="mca/novel", evaluate=("evaluation.novel_shots=2",)),
        ),
        rows=(
            Row(name="PN", system="pn", paper=("43.92 ± 0.40¹", ""), x=2, curve="PN"),
            Row(name="PCN", system="pcn", x=5, curve="PCN"),
        ),
        notes=("¹ a misprint.",),
    )
    results = results_of(table, tmp_path)
    picture = (tmp_path / "t-p.png", "fsl-dist plot curves a --out t-p.png")
    text = render_markdown(table, results, family="omniglot", seeds=1, pictures=[picture])
    assert text.rstrip().splitlines()[-2] == picture[1]
    assert "| PN | 40.0 ± 1.0 (43.92 ± 0.40¹) | 50.0 |" in text
    assert "| PCN | — | — |" in text
    assert "PCN: not measured; it failed" in text
    assert "- ¹ a misprint." in text
    commands = commands_of(results)
    assert commands[0].startswith("fsl-dist train --config omniglot/pn run.seed=0")
    assert find_config("omniglot/pn") == config_of("omniglot", "pn")
    assert any(command.endswith("evaluation.novel_shots=2") for command in commands)
    rows = list(csv.DictReader(io.StringIO(render_csv(table, results))))
    assert [(row["row"], row["metric"], row["count"]) for row in rows[:2]] == [
        ("PN", "mca/base_novel", "10"),
        ("PN", "mca/novel", "1"),
    ]
    draw(table, results, tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
