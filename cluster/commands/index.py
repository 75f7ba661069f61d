"""The commands `fsl-dist index build`, `search`, `status` and `rollback`; the others have their own files."""

import re
from pathlib import Path

import click

from cluster.commands.capacity_option import CAPACITY
from cluster.commands.index_changes import add, merge, remove, update
from cluster.commands.index_serve import serve
from cluster.commands.index_tune import tune
from cluster.commands.output import emit

_SETTING = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*=")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(path_type=Path)
_VERIFY = click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare every file's checksum first (reads all bytes).",
)


@click.group(name="index")
def index_group() -> None:
    """Build, search and inspect neighbour indexes.

    \b
    Example:
      fsl-dist index build --vectors X.npy --labels Y.npy my-index metric=l2
      fsl-dist index search my-index --queries Q.npy --k 10 --out R.npz
    """


for _command in (add, remove, update, merge, serve, tune):
    index_group.add_command(_command)


@index_group.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[RUN DATASET] OUT [KEY=VALUE]...")
@click.option(
    "--vectors",
    type=_FILE,
    help="float32 .npy [n, dim], or .parquet with one column of lists. With --labels.",
)
@click.option("--labels", help="integer .npy [n] in any order, or a column of the .parquet file.")
@click.option("--ids", help="The same for ids, at least 0 and unique; row numbers by default.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Ray tasks; 1 needs no Ray."
)
@CAPACITY
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(
    arguments: tuple[str, ...],
    vectors: Path | None,
    labels: str | None,
    ids: str | None,
    workers: int,
    as_json: bool,
) -> None:
    """Build an index at OUT and publish it as its next version.

    Either from arrays, or by embedding DATASET with the network of RUN. Keys: those of `index.` in a run's
    configuration without the prefix (kind and its settings, metric, device, shards, keep_versions, memory_mb). If it
    is killed, the same command resumes with the finished pieces; after a success, it finds its version and builds
    nothing.

    \b
    Example:
      fsl-dist index build --vectors X.npy --labels Y.npy my-index kind=flat metric=l2 shards=4
      fsl-dist index build runs/first data/skin my-index kind=ivf_flat metric=cosine
      fsl-dist index build runs/first data/skin my-index --workers 2
    """
    from index.base.errors import RequestError
    from index.base.settings import parse_overrides, validate
    from index.config import IndexConfig

    settings = [a for a in arguments if _SETTING.match(a)]
    paths = [Path(a) for a in arguments if not _SETTING.match(a)]
    keys = parse_overrides(settings)
    if (vectors is None) != (labels is None):
        raise RequestError("--vectors and --labels belong together: give both, or RUN and DATASET instead")
    is_from_arrays = vectors is not None
    if ids is not None and not is_from_arrays:
        raise RequestError("--ids goes with --vectors; ids of a data set are its sample ids")
    if len(paths) != (1 if is_from_arrays else 3):
        raise RequestError(
            f"index build needs --vectors X.npy --labels Y.npy OUT, or RUN DATASET OUT; it was given "
            f"{', '.join(map(str, paths)) or 'no folder'}{' and --vectors' if is_from_arrays else ''}"
        )
    out = paths[-1]
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; OUT must be a folder, new or of an index")
    if vectors is not None and labels is not None:
        from fsl_dist.progress import counter
        from fsl_dist.training.ray.session import spread_over
        from index.writing.vector_files import build_from_files

        config = validate(IndexConfig, keys, "the arguments")
        with spread_over(workers, embeds=False) as spread:
            # Workers may have other working directories.
            build_from_files(
                out.absolute(), vectors.absolute(), labels, ids, config, spread=spread, progress=counter()
            )
    else:
        import fsl_dist

        fsl_dist.open_run(paths[0]).build_index(out, data=paths[1], workers=workers, **keys)
    status = _describe(out)
    emit(status, as_json, f"{out}: version {status['version']}, {_in_words(status)}")


@index_group.command()
@click.argument("index", type=_FOLDER)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--queries", type=_FILE, required=True, help="float32 .npy [n, dim].")
@click.option("--k", type=click.IntRange(min=1), required=True, help="Neighbours a query.")
@click.option("--filter", "filter_name", type=click.Choice(["same_class", "other_class"]))
@click.option("--query-labels", type=_FILE, help="integer .npy [n]; --filter needs it.")
@click.option(
    "--query-ids", type=_FILE, help="integer .npy [n]: the id left out of each answer, -1 for none."
)
@click.option(
    "--include-ids", type=_FILE, help="integer .npy [n, 2]: ids [from, to) that alone are searched."
)
@click.option("--exclude-ids", type=_FILE, help="integer .npy [n, 2]: ids [from, to) that are not.")
@click.option("--exact", is_flag=True, help="Compare with every vector, for any kind of index.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="R.npz.")
@_VERIFY
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def search(
    index: Path,
    settings: tuple[str, ...],
    queries: Path,
    k: int,
    filter_name: str | None,
    query_labels: Path | None,
    query_ids: Path | None,
    include_ids: Path | None,
    exclude_ids: Path | None,
    exact: bool,
    out: Path,
    verify: bool,
    as_json: bool,
) -> None:
    """Find the K nearest vectors of INDEX for each query.

    R.npz contains `ids` int64 [n, k], -1 if there are fewer, and `distances` float32 [n, k]: squared Euclidean
    distances, inner products or cosines, depending on the index. KEY=VALUE is nprobe, ef_search or k_factor, for this
    search only.

    \b
    Example:
      fsl-dist index search my-index --queries Q.npy --k 10 --out R.npz
      fsl-dist index search my-index --queries X.npy --k 5 --filter other_class \\
          --query-labels Y.npy --query-ids I.npy --out R.npz nprobe=32
    """
    import io

    import numpy as np

    from index.base.errors import RequestError
    from index.base.files import write_atomic
    from index.base.settings import parse_overrides
    from index.search import open_index
    from index.writing.vector_files import read_array, read_integers

    if filter_name is not None and query_labels is None:
        raise RequestError("--filter needs --query-labels, one label for each query")
    opened = open_index(index, verify=verify)
    labels = None if query_labels is None else read_integers(query_labels)
    result = opened.search(
        read_array(queries),
        k,
        same_class=labels if filter_name == "same_class" else None,
        other_class=labels if filter_name == "other_class" else None,
        query_ids=None if query_ids is None else read_integers(query_ids),
        include_ids=None if include_ids is None else read_integers(include_ids),
        exclude_ids=None if exclude_ids is None else read_integers(exclude_ids),
        parameters=parse_overrides(settings),
        exact=exact,
    )
    packed = io.BytesIO()
    np.savez(packed, ids=result.ids, distances=result.distances)
    write_atomic(out, packed.getvalue())
    num_queries = len(result.ids)
    missing = f"; {result.num_missing} places have no neighbour (id -1)" if result.num_missing else ""
    emit(
        {
            "index": str(opened.path),
            "out": str(out),
            "num_queries": num_queries,
            "k": k,
            "num_missing": result.num_missing,
        },
        as_json,
        f"{out}: {k} neighbours of {num_queries} queries{missing}",
    )


@index_group.command()
@click.argument("index", type=_FOLDER)
@_VERIFY
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(index: Path, verify: bool, as_json: bool) -> None:
    """Describe INDEX: its current version and the others, and unfinished builds.

    \b
    Example:
      fsl-dist index status my-index
    """
    described = _describe(index, verify=verify)
    lines = [f"{index}: version {described['version']}, {_in_words(described)}"]
    lines += [
        f"{name}: {described[name]}"
        for name in ("created", "factory", "parameters", "versions", "size_bytes", "source")
    ]
    if described["changes"]["batches"]:  # type: ignore[index]
        lines.append(
            "changed since by {batches} batches: {added} vectors added, {removed} removed or replaced (build the "
            "next version: "
            "fsl-dist index merge)".format(**described["changes"])  # type: ignore[arg-type]
        )
    lines += [
        f"unfinished: {attempt['token']}, {attempt['num_vectors']} vectors, embedded pieces {attempt['pieces']}, "
        f"shards {attempt['shards']}, last written {attempt['written_s']:g} s ago"
        for attempt in described["unfinished"]  # type: ignore[attr-defined]
    ]
    emit(described, as_json, "\n".join(lines))


@index_group.command()
@click.argument("index", type=_FOLDER)
@click.option(
    "--to", type=click.IntRange(min=1), help="Version to go to; the one before the current by default."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rollback(index: Path, to: int | None, as_json: bool) -> None:
    """Make an older version of INDEX current, after its checksums were verified. Readers follow; nothing is removed.

    \b
    Example:
      fsl-dist index rollback my-index --to 3
    """
    from index.changes import roll_back

    roll_back(index, to)
    described = _describe(index)
    emit(described, as_json, f"{index}: version {described['version']} is current, {_in_words(described)}")


def _describe(index: Path, *, verify: bool = False) -> dict[str, object]:
    import dataclasses

    from index import versions
    from index.changes import Contents
    from index.writing.attempts import list_attempts

    folder = versions.find_version(index)
    manifest = versions.read_manifest(folder)
    versions.check_files(folder, manifest, verify=verify)
    contents = Contents(folder, manifest, vectors=verify)  # with their vectors all bytes are read
    changes = contents.changes
    return {
        "index": str(index),
        "version": manifest.version,
        "versions": versions.list_versions(index) or [manifest.version],
        "path": str(folder),
        "kind": manifest.kind,
        "factory": manifest.factory,
        "parameters": manifest.parameters,
        "metric": manifest.metric,
        "num_vectors": contents.num_vectors,
        "dim": manifest.dim,
        "num_classes": len(contents.classes),
        "shards": len(manifest.shard_starts),
        "size_bytes": sum(record.size_bytes for record in manifest.files.values()),
        "created": manifest.created,
        "changes": {
            "batches": changes.number,
            "added": len(changes.ids),
            "removed": len(changes.hidden),
        },
        "source": manifest.source,
        "unfinished": [dataclasses.asdict(attempt) for attempt in list_attempts(index)],
    }


def _in_words(status: dict[str, object]) -> str:
    return (
        f"{status['num_vectors']} vectors of {status['dim']} numbers in {status['num_classes']} classes, "
        f"{status['metric']}, {status['shards']} shard(s)"
    )
