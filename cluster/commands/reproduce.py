"""The command `reproduce`: a paper's table, run and compared with the paper."""

from pathlib import Path

import click

from cluster.commands.output import emit


@click.command(epilog="Example: fsl-dist reproduce pcn-1 --data omniglot --seeds 3")
@click.argument("table", required=False)
@click.option("--list", "lists", is_flag=True, help="The tables, and the families each can be run on.")
@click.option(
    "--family",
    default="",
    help="Family (data set) whose configurations the rows are trained with.  [default: the table's own small one]",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="A packed data set, or the images the family packs."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/reproduce"),
    show_default=True,
    help="Folder of runs, scores and the table's files; finished parts are reused.",
)
@click.option("--seeds", default=1, show_default=True, help="Runs of each row, with run.seed 0, 1, …")
@click.option(
    "--jobs", default=0, help="Concurrent runs; 0: one, and on a machine without a GPU one per core."
)
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]…")
def reproduce(
    table: str | None,
    lists: bool,
    family: str,
    data: Path | None,
    out: Path,
    seeds: int,
    jobs: int,
    as_json: bool,
    settings: tuple[str, ...],
) -> None:
    """Run a table of a paper and print it next to the paper's figures; KEY=VALUE applies to each run."""
    from index.base.errors import FslDistError, RequestError
    from tune.tables import tables

    if lists or table is None:
        known = {
            name: (found.title, sorted(tables.families_of(found), key=lambda family: family != found.family))
            for name, found in tables.list_tables().items()
        }
        width = max(map(len, known))
        lines = [f"{n:<{width}}  {t}\n{'':<{width}}  --family {', '.join(f)}" for n, (t, f) in known.items()]
        emit(
            {name: {"title": t, "families": f} for name, (t, f) in known.items()},
            as_json,
            "\n".join(lines),
        )
        return
    wanted = tables.read_table(table)
    family = family or wanted.family
    source = tables.read_family(family).source
    if data is None:
        raise RequestError(f"--data is missing: name a packed data set, or {source}")
    if seeds < 1:
        raise RequestError(f"--seeds {seeds} must be at least 1")
    if jobs < 0:
        raise RequestError(f"--jobs {jobs} must be 0 (as many as fit) or more")
    from tune.tables.pictures import draw_pictures
    from tune.tables.report import draw, render_csv, render_markdown
    from tune.tables.run import reproduce as run_table

    def show(line: str) -> None:
        click.echo(line, err=True)

    found, results = run_table(
        table,
        family=family,
        data=data,
        out=out,
        seeds=seeds,
        jobs=jobs or _default_jobs(),
        settings=settings,
        show=show,
    )
    name = f"{table}-{family}"
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_pictures(found, results, out / name, show)
    text = render_markdown(found, results, family=family, seeds=seeds, pictures=pictures)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.csv").write_text(render_csv(found, results), encoding="utf-8")
    draw(found, results, out / f"{name}.png")
    rows_json = [
        {
            "row": r.row.name,
            "problem": r.problem,
            "scores": [list(s) for s in r.scores],
            "paper": list(r.row.paper),
        }
        for r in results
    ]
    report = {
        "table": table,
        "family": family,
        "columns": [c.title for c in found.columns],
        "rows": rows_json,
        "pictures": [str(path) for path, _ in pictures],
    }
    files = "".join(f"\n{path}" for path, _ in pictures)
    emit(report, as_json, f"{text}\n{out / name}.md, .csv, .png{files}")
    if any(result.problem for result in results):
        raise FslDistError("some rows failed; the same command resumes them")


def _default_jobs() -> int:
    import os

    import torch

    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)
