"""The command `fsl-dist export`."""

from pathlib import Path

import click

from cluster.commands.output import emit


@click.command(epilog="Example: fsl-dist export runs/omniglot-pcn omniglot.onnx")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
def export(run: Path, out: Path, as_json: bool) -> None:
    """Write the embedder of RUN to the file OUT: .onnx, .safetensors or .pt2 (torch.export).

    OUT maps normalised images to embeddings. Its metadata contain the preprocessing of images. The file is verified:
    it must embed some images as RUN does, within 1e-4. ONNX needs: pip install 'fsl-dist[export]'.
    """
    import fsl_dist

    opened = fsl_dist.open_run(run)
    path = opened.export(out)
    result = {
        "run": str(run),
        "out": str(path),
        "dim": opened.trained.embedder.dim,
        "size_bytes": path.stat().st_size,
    }
    emit(result, as_json, f"{path}: {result['dim']} numbers an embedding, {path.stat().st_size / 1e6:.1f} MB")
