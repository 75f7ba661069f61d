"""The command `fsl-dist index add`, `remove`, `update` and `merge`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.output import emit

if TYPE_CHECKING:
    from index.writing.writer import Change

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_VECTORS = click.option("--vectors", type=_FILE, required=True, help="float32 .npy [n, dim].")


@click.command()
@click.argument("index", type=_FOLDER)
@_VECTORS
@click.option(
    "--labels", type=_FILE, required=True, help="integer .npy [n], at least 0; new ones may be among them."
)
@click.option(
    "--ids", type=_FILE, help="integer .npy [n], not in the index; by default the next after its largest."
)
@_JSON
def add(index: Path, vectors: Path, labels: Path, ids: Path | None, as_json: bool) -> None:
    """Add vectors to the current version of INDEX: all of them are on disk when the command ends, or none.

    Later searches find them; `index merge` builds the next version.

    \b
    Example:
      fsl-dist index add my-index --vectors new.npy --labels new-labels.npy
    """
    from index.writing.vector_files import read_array, read_integers
    from index.writing.writer import IndexWriter

    change = IndexWriter(index).add(
        read_array(vectors), read_integers(labels), None if ids is None else read_integers(ids)
    )
    _emit(index, change, "added", as_json)


@click.command()
@click.argument("index", type=_FOLDER)
@click.option("--ids", type=_FILE, required=True, help="integer .npy [n].")
@_JSON
def remove(index: Path, ids: Path, as_json: bool) -> None:
    """Remove vectors from the current version of INDEX by their ids, all of them or none.

    \b
    Example:
      fsl-dist index remove my-index --ids wrong.npy
    """
    from index.writing.vector_files import read_integers
    from index.writing.writer import IndexWriter

    _emit(index, IndexWriter(index).remove(read_integers(ids)), "removed", as_json)


@click.command()
@click.argument("index", type=_FOLDER)
@click.option("--ids", type=_FILE, required=True, help="integer .npy [n], in the index.")
@_VECTORS
@click.option("--labels", type=_FILE, help="integer .npy [n]; by default labels are kept.")
@_JSON
def update(index: Path, ids: Path, vectors: Path, labels: Path | None, as_json: bool) -> None:
    """Replace vectors of the current version of INDEX, all of them or none.

    \b
    Example:
      fsl-dist index update my-index --ids I.npy --vectors better.npy
    """
    from index.writing.vector_files import read_array, read_integers
    from index.writing.writer import IndexWriter

    change = IndexWriter(index).update(
        read_integers(ids), read_array(vectors), None if labels is None else read_integers(labels)
    )
    _emit(index, change, "replaced", as_json)


@click.command()
@click.argument("index", type=_FOLDER)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@_JSON
def merge(index: Path, settings: tuple[str, ...], as_json: bool) -> None:
    """Build the next version of INDEX from the current one and its added and removed vectors.

    It has the settings of the current version, including its kind, its shards and the parameters that `tune` found;
    KEY=VALUE, as for `build`, overrides them. Changes made concurrently are in the new version. A killed merge
    resumes with the same command.

    \b
    Example:
      fsl-dist index merge my-index
      fsl-dist index merge my-index shards=8
    """
    from fsl_dist.progress import counter
    from index import versions
    from index.base.settings import parse_overrides
    from index.writing.merging import merge as merge_changes

    folder, is_new = merge_changes(index.absolute(), parse_overrides(settings), progress=counter())
    manifest = versions.read_manifest(folder)
    emit(
        {
            "index": str(index),
            "version": manifest.version,
            "num_vectors": manifest.num_vectors,
            "merged": is_new,
        },
        as_json,
        f"{index}: version {manifest.version}, {manifest.num_vectors} vectors"
        if is_new
        else f"{index}: version {manifest.version} has no changes; there is nothing to merge",
    )


def _emit(index: Path, change: "Change", done: str, as_json: bool) -> None:
    first, last = int(change.ids[0]), int(change.ids[-1])
    emit(
        {
            "index": str(index),
            "version": change.version,
            "change": change.number,
            "num_vectors": len(change.ids),
            "first_id": first,
            "last_id": last,
        },
        as_json,
        f"{index}: {done} {len(change.ids)} vectors (ids {first} … {last}), change {change.number} of version "
        f"{change.version}",
    )
