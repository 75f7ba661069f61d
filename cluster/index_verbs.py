"""The verbs `fsl-dist index build`, `search` and `status`; `tune` has a file of its own."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.index_tune_verb import tune
from cluster.output import emit

if TYPE_CHECKING:
    import numpy as np

    from index.config import IndexConfig

_SETTING = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*=")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(path_type=Path)


@click.group(name="index")
def index_group() -> None:
    """Build, search and look at neighbour indexes.

    \b
    Example:
      fsl-dist index build --vectors X.npy --labels Y.npy my-index metric=l2
      fsl-dist index search my-index --queries Q.npy --k 10 --out R.npz
    """


index_group.add_command(tune)


@index_group.command()
@click.argument("arguments", nargs=-1, required=True, metavar="[RUN DATASET] OUT [KEY=VALUE]...")
@click.option("--vectors", type=_FILE, help="float32 .npy [n, dim]; ids are its rows. With --labels.")
@click.option("--labels", type=_FILE, help="integer .npy [n], in any order. With --vectors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(arguments: tuple[str, ...], vectors: Path | None, labels: Path | None, as_json: bool) -> None:
    """Build an index at OUT and publish it as its next version.

    Either from arrays, or by embedding DATASET with the network of RUN. Keys: kind (flat, ivf_flat, ivf_pq,
    hnsw, factory) and its settings, metric, device, shards, keep_versions.

    \b
    Example:
      fsl-dist index build --vectors X.npy --labels Y.npy my-index kind=flat metric=l2 shards=4
      fsl-dist index build runs/first data/skin my-index kind=ivf_flat metric=cosine
    """
    from index import gate
    from index.config import IndexConfig
    from index.errors import RequestError

    settings = [a for a in arguments if _SETTING.match(a)]
    paths = [Path(a) for a in arguments if not _SETTING.match(a)]
    config = gate.validate(IndexConfig, gate.parse_overrides(settings), "the arguments")
    if (vectors is None) != (labels is None):
        raise RequestError("--vectors and --labels belong together: give both, or RUN and DATASET instead")
    is_from_arrays = vectors is not None
    if len(paths) != (1 if is_from_arrays else 3):
        raise RequestError(
            f"index build takes --vectors X.npy --labels Y.npy OUT, or RUN DATASET OUT; it was given "
            f"{', '.join(map(str, paths)) or 'no folder'}{' and --vectors' if is_from_arrays else ''}"
        )
    out = paths[-1]
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; OUT must be a folder, new or of an index")
    if vectors is not None and labels is not None:
        _build_from_arrays(out, vectors, labels, config)
    else:
        from fsl_dist.indexing import build_from_run

        build_from_run(paths[0], paths[1], out, config)
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
@click.option("--exact", is_flag=True, help="Compare with every vector, whatever the kind.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="R.npz.")
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
    as_json: bool,
) -> None:
    """Find the K nearest vectors of INDEX for each query.

    R.npz holds `ids` int64 [n, k], -1 where there are fewer, and `distances` float32 [n, k]: squared Euclidean
    distances, inner products or cosines, as the index was built. KEY=VALUE is nprobe, ef_search or k_factor, this
    once.

    \b
    Example:
      fsl-dist index search my-index --queries Q.npy --k 10 --out R.npz
      fsl-dist index search my-index --queries X.npy --k 5 --filter other_class \\
          --query-labels Y.npy --query-ids I.npy --out R.npz nprobe=32
    """
    import io

    import numpy as np

    from index import gate
    from index.search import open_index
    from index.storage import write_atomic

    opened = open_index(index)
    result = opened.search(
        _read_array(queries),
        k,
        filter=filter_name,  # type: ignore[arg-type]  # click.Choice allows the two names alone
        query_labels=None if query_labels is None else _read_integers(query_labels),
        query_ids=None if query_ids is None else _read_integers(query_ids),
        include_ids=None if include_ids is None else _read_integers(include_ids),
        exclude_ids=None if exclude_ids is None else _read_integers(exclude_ids),
        parameters=gate.parse_overrides(settings),
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
@click.option("--verify", is_flag=True, help="Read every byte and compare checksums.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(index: Path, verify: bool, as_json: bool) -> None:
    """Say what INDEX holds: version, vectors, metric, shards, sources.

    \b
    Example:
      fsl-dist index status my-index --verify
    """
    described = _describe(index, verify=verify)
    lines = [f"{index}: version {described['version']}, {_in_words(described)}"]
    lines += [f"{name}: {described[name]}" for name in ("created", "versions", "size_bytes", "source")]
    emit(described, as_json, "\n".join(lines))


def _build_from_arrays(out: Path, vectors: Path, labels: Path, config: "IndexConfig") -> None:
    from index.build import build as build_index

    build_index(out, _read_array(vectors), _read_integers(labels), config=config)


def _describe(index: Path, *, verify: bool = False) -> dict[str, object]:
    import numpy as np

    from index import versions

    folder = versions.find_version(index)
    manifest = versions.read_manifest(folder)
    versions.check_files(folder, manifest, verify=verify)
    return {
        "index": str(index),
        "version": manifest.version,
        "versions": versions.list_versions(index) or [manifest.version],
        "path": str(folder),
        "kind": manifest.kind,
        "factory": manifest.factory,
        "parameters": manifest.parameters,
        "metric": manifest.metric,
        "num_vectors": manifest.num_vectors,
        "dim": manifest.dim,
        "num_classes": len(np.unique(versions.read_labels(folder, manifest))),
        "shards": len(manifest.shard_starts),
        "size_bytes": sum(record.size_bytes for record in manifest.files.values()),
        "created": manifest.created,
        "source": manifest.source,
    }


def _in_words(status: dict[str, object]) -> str:
    return (
        f"{status['num_vectors']} vectors of {status['dim']} numbers in {status['num_classes']} classes, "
        f"{status['metric']}, {status['shards']} shard(s)"
    )


def _read_array(path: Path) -> "np.ndarray":
    import numpy as np

    from index.errors import RequestError

    try:
        # Never unpickled: an array of objects is refused.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RequestError(f"{path} is not a .npy array of numbers: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise RequestError(f"{path} holds several arrays (.npz); save the one that is meant with numpy.save")
    return array


def _read_integers(path: Path) -> "np.ndarray":
    import numpy as np

    from index.errors import RequestError

    array = _read_array(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise RequestError(f"{path} has dtype {array.dtype}; it must hold integers (.astype('int64'))")
    return array.astype(np.int64)
