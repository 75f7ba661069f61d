"""The command `fsl-dist index serve`."""

import http.client
import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.output import emit
from index.base.extras import require

if TYPE_CHECKING:
    from cluster.service.settings import GateSettings, ServiceSettings
    from index.actors.client import RayIndex

_POSITIVE = click.IntRange(min=1)
_READY_WITHIN_S = 60


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--token-env", metavar="NAME", help="Environment variable with the token that requests must contain."
)
@click.option(
    "--replicas", type=_POSITIVE, default=1, show_default=True, help="Processes that answer requests."
)
@click.option(
    "--actors",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Ray actors to deal the shards to, each --replicas times; 0 opens all shards in each process.",
)
@click.option(
    "--cpus", type=_POSITIVE, default=1, show_default=True, help="CPUs, and threads, of each that searches."
)
@click.option("--dataset", type=click.Path(path_type=Path), help="Answer with the keys of its images, too.")
@click.option("--max-k", type=int, default=1000, show_default=True, help="Neighbours a query.")
@click.option("--max-batch", type=int, default=1024, show_default=True, help="Queries a request.")
@click.option("--max-body-mb", type=int, default=32, show_default=True, help="Size of a request, in MiB.")
@click.option(
    "--gate",
    metavar="KEY=VALUE",
    multiple=True,
    help="A deadline or limit of those who connect, such as body_s=60; docs/how_to/index_service.md lists them. May be repeated.",
)
@click.option(
    "--probe-queries",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    help="Vectors of each version by which its recall is measured for /metrics; 0 measures none.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare every file's checksum before a version is served.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for copies of an INDEX at an object store, kept for the next start. Default: a temporary folder.",
)
@click.option(
    "--cache-gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Most GiB of these copies. The default is what the disk has. Two versions are open during a change of versions.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, when it is ready.")
def serve(
    index: Path,
    host: str,
    port: int,
    token_env: str | None,
    replicas: int,
    actors: int,
    cpus: int,
    dataset: Path | None,
    max_k: int,
    max_batch: int,
    max_body_mb: int,
    gate: tuple[str, ...],
    probe_queries: int,
    verify: bool,
    cache_dir: Path | None,
    cache_gb: float | None,
    as_json: bool,
) -> None:
    """Serve searches of INDEX over HTTP, until Ctrl-C or SIGTERM.

    Requests contain vectors; answers contain ids, labels, keys and distances, as JSON or as raw bytes; its page /docs
    describes them. It follows publications and rollbacks; each answer comes from one version and names it.

    \b
    Example:
      fsl-dist index serve my-index
      fsl-dist index serve my-index --host 0.0.0.0 --token-env INDEX_TOKEN --replicas 2 --cpus 4
      fsl-dist index serve s3://team/indexes/skin --cache-dir /var/cache/fsl-dist --cache-gb 20
    """
    from cluster.service.settings import (
        GateSettings,
        Limits,
        ServiceSettings,
        digest_token,
        find_catalogue,
    )
    from fsl_dist.training.ray.session import ray_session
    from index import versions
    from index.base.settings import parse_overrides, validate
    from index.version_cache import bring_version

    require(
        "fastapi"
    )  # not ray.serve: Ray must not be imported before its session settles how it authenticates
    from cluster.service.gate import environment

    limits = Limits(max_k=max_k, max_batch=max_batch, max_body_mb=max_body_mb)
    _check_address(host, port, has_token=token_env is not None)
    token_sha256 = "" if token_env is None else digest_token(token_env)
    facts = {"max_body_mb": max_body_mb, "token_sha256": token_sha256}
    gated = validate(GateSettings, {**parse_overrides(gate), **facts}, "gate", "gate")
    stdout = sys.stdout

    def say(facts: dict[str, object], text: str) -> None:
        with redirect_stdout(stdout):  # which is stderr while Ray runs, for what Ray prints
            emit(facts, as_json, text)

    # Ray Serve gives up on a server that does not listen within 5 s, which is too short on a busy machine.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(_READY_WITHIN_S))
    try:
        with _copies(index, cache_dir, actors) as cache:
            index = _in_cache(index, cache)
            dataset = None if dataset is None else _in_cache(dataset, cache)
            folder = versions.find_version(index)
            manifest = versions.read_manifest(folder)
            bring_version(folder, manifest, verify=verify, cache_gb=cache_gb)
            if dataset is not None:
                find_catalogue(dataset, manifest.source.get("catalogue", ""))
            settings = ServiceSettings(
                index=index,
                verify=verify,
                checked=None if cache is not None and os.environ.get("RAY_ADDRESS") else folder,
                cache_gb=cache_gb,
                dataset=dataset,
                limits=limits,
                token_sha256=token_sha256,
                num_actors=actors,
                num_replicas=replicas,
                num_cpus=cpus,
                probe_queries=probe_queries,
            )
            # Inherited by the processes of a Ray that starts here.
            os.environ.update(environment(gated))
            with ray_session(replicas * (1 + actors * cpus if actors else cpus)):
                # Ray has replaced the handler: it would exit with 15, without any cleanup.
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                _run(settings, gated, host, port, say)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


@contextmanager
def _copies(index: Path, cache_dir: Path | None, actors: int) -> Iterator[Path | None]:
    """Yield the folder for copies of an index at an object store; None for an index on a disk. Raises RequestError."""
    from index.base.errors import RequestError
    from index.base.object_cache import place_of
    from index.base.scratch import scratch_folder

    place = place_of(index)
    if place is None:
        if cache_dir is not None:
            raise RequestError(
                f"cache_dir={cache_dir} is for an index at an object store; {index} is on a disk"
            )
        yield None
    elif actors:
        raise RequestError(
            f"actors={actors} needs an index on a disk that all nodes see, not {place.url} (replicas open it whole, from "
            "copies)"
        )
    elif cache_dir is not None:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield cache_dir.absolute()
    elif os.environ.get("RAY_ADDRESS"):
        raise RequestError(
            f"{place.url} is copied to each node of the Ray cluster of RAY_ADDRESS; name a folder there with cache_dir"
        )
    else:
        with scratch_folder("fsl-copies-") as folder:
            yield folder


def _in_cache(path: Path, cache: Path | None) -> Path:
    """The path of what the command line names, with copies in `cache` of what is at an object store."""
    from index.base.object_cache import place_of, working_folder

    place = place_of(path)
    return path.absolute() if place is None else working_folder(place.url, cache)


def _run(
    settings: "ServiceSettings",
    gate: "GateSettings",
    host: str,
    port: int,
    say: Callable[[dict[str, object], str], None],
) -> None:
    """Start the service, report it, and wait for a signal; everything started here ends."""
    import logging

    import ray
    from ray import serve

    from cluster.service.gate import environment
    from cluster.service.replica import APP_NAME, make_application
    from index.actors.client import open_ray_index
    from index.base.errors import FslDistError, RequestError
    from index.versions import find_version, read_manifest

    joins = bool(os.environ.get("RAY_ADDRESS"))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if names := ", ".join(serve.status().applications):
        raise RequestError(
            f"the Ray cluster of RAY_ADDRESS already serves {names}, at another address; end that "
            "(serve shutdown), or start this one on another cluster"
        )
    with suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        raise RequestError(
            "the Ray cluster of RAY_ADDRESS runs Ray Serve with options of its own and serves nothing; end it first "
            "(serve shutdown)"
        )
    remote: RayIndex | None = None

    def close_actors() -> None:
        if remote is not None:
            remote.close()

    with ExitStack() as started:
        if settings.num_actors:
            # The replicas find these actors by name; they end with this command.
            remote = open_ray_index(
                settings.index,
                num_actors=settings.num_actors,
                replicas=settings.num_replicas,
                num_cpus=settings.num_cpus,
                verify=False,
            )
            started.callback(close_actors)
        logs = {"log_level": "WARNING", "enable_access_log": False}
        try:
            with suppress(TimeoutError):  # after 60 s, although it continues to start; /health reports it
                serve.start(
                    http_options={"host": host, "port": port},
                    logging_config=logs,
                    # The processes that listen are actors of the controller and get its environment. A Ray that this
                    # command started has it already, so that processes started in advance can be used.
                    controller_options={"runtime_env": {"env_vars": environment(gate)}} if joins else None,
                )
            started.callback(_end)
            serve.run(make_application(settings), name=APP_NAME, logging_config=logs)
        except (RuntimeError, ray.exceptions.RayError) as error:
            raise FslDistError(f"the service did not start: {' '.join(str(error).split())}") from None
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if not os.environ.get("RAY_ADDRESS"):
            _wait_until_ready(host, port)
        manifest = read_manifest(find_version(settings.index))
        facts = {"url": url, "index": str(settings.index), "version": manifest.version}
        say(facts, f"{url} serves {settings.index}, version {manifest.version}")
        while True:
            time.sleep(1)
            if remote is not None:
                # A reader that has a version open keeps it from being removed.
                with suppress(FslDistError):
                    remote = remote.refresh()


def _end() -> None:
    """Answer the running requests, then accept no more."""
    from ray import serve

    from cluster.service.replica import APP_NAME

    serve.delete(APP_NAME)
    if os.environ.get("RAY_ADDRESS"):  # a Ray that this command started ends with it, including Ray Serve
        serve.shutdown()


def _check_address(host: str, port: int, *, has_token: bool) -> None:
    """Raise RequestError for an address in use, and for one that others can reach without a token."""
    from index.base.errors import RequestError

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise RequestError(f"host={host} is not an address of this machine: {error}") from None
    if not ipaddress.ip_address(address[0]).is_loopback and not has_token:
        raise RequestError(
            f"host={host} lets others reach the index, and there is no token; set the environment variable that "
            "contains one: --token-env NAME"
        )
    if os.environ.get("RAY_ADDRESS"):
        return  # the cluster's machines listen, not this one
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise RequestError(f"host={host} port={port}: {error.strerror}; choose another --port") from None


def _wait_until_ready(host: str, port: int) -> None:
    """Wait until /health is answered. Raises FslDistError."""
    from index.base.errors import FslDistError

    there = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (asks itself)
    deadline = time.monotonic() + _READY_WITHIN_S
    while True:
        connection = http.client.HTTPConnection(there, port, timeout=5)
        with suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        if time.monotonic() > deadline:
            raise FslDistError(
                f"{host}:{port} did not answer within {_READY_WITHIN_S} s; see the logs of Ray Serve"
            )
        time.sleep(0.05)
