"""`python -m benchmarks.suite practice`."""

import os
from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command(name="practice")
@click.option(
    "--set", "names", multiple=True, metavar="NAME", help="A data set; may be repeated. Default: all."
)
@click.option("--row", "rows", multiple=True, metavar="NAME", help="A row; may be repeated. Default: all.")
@click.option("--folder", type=_FOLDER, help="A folder of images of your own instead of the sets.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="torchvision's MobileNetV2. Default: that of FSL_DIST_TEST_DATA.",
)
@click.option(
    "--image-size", type=click.IntRange(min=32), default=96, show_default=True, help="Pixels, with --folder."
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=19_200,
    show_default=True,
    help="Images seen, with --folder.",
)
@click.option(
    "--seeds", "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each row."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch. Default: one for each core.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path.home() / ".cache" / "fsl-dist" / "practice",
    show_default=True,
    help="Folder for unpacked data and cached activations; reused.",
)
@click.option(
    "--out", type=_FOLDER, required=True, help="Folder that gets practice/SET.json. Finished runs are kept."
)
def practice(
    names: tuple[str, ...],
    rows: tuple[str, ...],
    folder: Path | None,
    weights: Path | None,
    image_size: int,
    images: int,
    seeds: int,
    threads: int | None,
    work: Path,
    out: Path,
) -> None:
    """What a user would otherwise do with a folder of images, next to fit: accuracy and mean class recall.

    FSL_DIST_TEST_DATA names the folder with the archives of real data and the weights.

    \b
    Example:
      python -m benchmarks.suite practice --set groceries-tail --seeds 3 --out benchmarks/results
      python -m benchmarks.suite practice --folder birds --weights mobilenet_v2.pth --out results
    """
    import torch

    from benchmarks.practice.page import render_set
    from benchmarks.practice.rows import ROWS
    from benchmarks.practice.run import run_set
    from benchmarks.practice.sets import SETS, WEIGHTS, own_set
    from fsl_dist.errors import FslDistError, RequestError

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    try:
        archives = _find_archives()
        if weights is None and archives is None:
            raise RequestError("--weights is missing, and FSL_DIST_TEST_DATA names no folder that has them")
        chosen_rows = [ROWS[name] for name in _check("row", rows, tuple(ROWS))]
        if folder is not None and names:
            raise RequestError("--folder and --set exclude each other")
        chosen = (
            [own_set(folder.resolve(), image_size, images)]
            if folder is not None
            else [SETS[name] for name in _check("set", names, tuple(SETS))]
        )
        results = out / "practice"
        results.mkdir(exist_ok=True)
        for each in chosen:
            record = run_set(
                each,
                archives=archives,
                weights=weights or Path(archives or "") / WEIGHTS,
                work=work,
                out=results,
                seeds=seeds,
                rows=chosen_rows,
                say=click.echo,
            )
            click.echo(render_set(record))
    except RequestError as error:
        raise click.UsageError(str(error)) from error
    except FslDistError as error:
        raise click.ClickException(str(error)) from error


def _find_archives() -> Path | None:
    """The folder that FSL_DIST_TEST_DATA names, if it does and is there."""
    named = os.environ.get("FSL_DIST_TEST_DATA", "")
    return Path(named) if named and Path(named).is_dir() else None


def _check(kind: str, names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The names in the given order; all known ones for none. RequestError for another name."""
    from fsl_dist.errors import RequestError

    for name in names:
        if name not in known:
            raise RequestError(f"no {kind} is called {name!r}; there are {', '.join(known)}")
    return names or known
