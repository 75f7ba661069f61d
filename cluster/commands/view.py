"""The command `fsl-dist view`."""

import time
from pathlib import Path

import click

from cluster.commands.output import emit
from index.base.extras import require


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN [RUN]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0: a free one."
)
@click.option(
    "--token-env", metavar="NAME", help="Environment variable with the token that requests must contain."
)
@click.option(
    "--max-upload-mb", type=int, default=20, show_default=True, help="Size of an image file, in MiB."
)
@click.option(
    "--max-megapixels",
    type=float,
    default=50.0,
    show_default=True,
    help="Millions of pixels of an image; larger ones are refused.",
)
@click.option(
    "--corrections",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Table for decisions on labels.  [default: RUN/corrections.csv]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, when it is ready.")
def view(
    runs: tuple[Path, ...],
    host: str,
    port: int,
    token_env: str | None,
    max_upload_mb: int,
    max_megapixels: float,
    corrections: Path | None,
    as_json: bool,
) -> None:
    """Show the evidence for the answers of RUN in a browser, until Ctrl-C or SIGTERM.

    Drop an image: its classes with calibrated confidence, the nearest training images, and the activation maps of each
    pair. Two runs of the same data are compared next to each other. The page Correct lists likely label errors,
    near-duplicates and other suspicious images; its decisions are a table for `resplit`. Uploaded images stay in
    memory. No network is used.

    \b
    Example:
      fsl-dist view runs/skin
      fsl-dist view runs/skin runs/skin-pcn --port 9000
    """
    require("fastapi")
    from cluster.view.server import ViewServer
    from cluster.view.settings import ViewSettings
    from index.base.settings import validate

    limits = {"max_upload_mb": max_upload_mb, "max_megapixels": max_megapixels}
    settings = validate(ViewSettings, limits, "view", "view")
    with ViewServer(
        runs, host=host, port=port, token_env=token_env, corrections=corrections, settings=settings
    ) as server:
        emit(
            {"url": server.url, "runs": [str(run) for run in runs]}, as_json, f"{server.url} (Ctrl-C ends it)"
        )
        while server.is_running:
            time.sleep(0.5)
