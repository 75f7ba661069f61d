"""Ray on this machine for as long as a block runs, or the cluster that the process was started in."""

import importlib
import ipaddress
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress

from fsl_dist.errors import CapacityError
from fsl_dist.training.ray.capacity import wait_for_capacity
from fsl_dist.training.ray.orphans import RAY_SCRATCH, end_orphans
from fsl_dist.training.ray.watching import watching_ray
from index.base.extras import require
from index.base.pieces import Spread, do_here
from index.base.scratch import scratch_folder
from index.base.stopping import Stopped, keeping_handlers

log = logging.getLogger(__name__)

_LISTENS_ELSEWHERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for clusters of several machines, on Linux too. "0": the node's address is the loopback, and every
process of Ray listens only there. Otherwise they listen on all addresses, and their metrics need no token."""


def prepare_import() -> bool:
    """Set what Ray reads when it is imported, before its first import; returns whether a cluster will be joined."""
    # Ray reports usage to a server on the internet by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    joins = bool(os.environ.get("RAY_ADDRESS"))
    if not joins and "ray" not in sys.modules:
        # Ray reads these when it is imported, not when it starts; an earlier import has settled them.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault(_LISTENS_ELSEWHERE, "0")
    return joins


@contextmanager
def ray_session(num_cpus: int, *, importing: str = "") -> Iterator[None]:
    """Join the Ray cluster of RAY_ADDRESS, otherwise start one here with at least `num_cpus` CPU slots.

    A Ray that is started here listens on loopback, requires its own token, and ends with the block. Its folder is
    removed then, or by the next start if this process was killed, which also ends what is left of its processes.
    importing: a module with a slow import (torch: 2 s), imported while Ray's processes start.
    """
    joins = prepare_import()
    require("ray")
    import ray
    from ray.util import get_node_ip_address

    if ray.is_initialized():
        yield
        return
    # After Ray's own import: two threads that import the same library may wait for each other.
    meanwhile = threading.Thread(target=_import_quietly, args=(importing,), daemon=True)
    meanwhile.start()
    # Ray prints messages of its processes on stdout, which is reserved for a command's result.
    with redirect_stdout(sys.stderr), ExitStack() as stack:
        with keeping_handlers(), _ending_as_elsewhere():
            if joins:
                stack.callback(ray.shutdown)
                ray.init(log_to_driver=False)
            else:
                # A separate folder: two Rays that share one find each other's ports in it. Short, because of its
                # sockets; in a folder of this user, since Ray makes its own writable for everybody.
                end_orphans()
                scratch = stack.enter_context(scratch_folder(RAY_SCRATCH)) / "r"
                num_cpus = max(num_cpus, os.cpu_count() or 1)
                log.info("starting Ray on this machine (%d CPU slots)", num_cpus)
                if not ipaddress.ip_address(get_node_ip_address()).is_loopback:
                    log.warning(
                        "Ray was imported before this session: it listens on all addresses of this machine (set %s=0 and "
                        "RAY_AUTH_MODE=token in the environment, or import ray later)",
                        _LISTENS_ELSEWHERE,
                    )
                stack.callback(ray.shutdown)
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    _temp_dir=str(scratch),
                )
                stack.enter_context(watching_ray(scratch))
        meanwhile.join()
        yield


@contextmanager
def _ending_as_elsewhere() -> Iterator[None]:
    """Raise `Stopped` where Ray's own answer to SIGTERM, while it starts, ends the process with the signal's number."""
    try:
        yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        raise Stopped(number=signal.SIGTERM) from None


@contextmanager
def spread_over(workers: int, *, embeds: bool) -> Iterator[Spread]:
    """How to run the pieces of an index build: in this process, or by Ray actors,
    which share the GPUs if they embed."""
    if workers == 1:
        yield do_here
        return
    from index.writing.ray import on_ray

    with ray_session(workers):
        import ray

        def check_cpus() -> None:
            if (cpus := cluster_size()[0]) < workers:
                raise CapacityError(
                    f"workers={workers} needs {workers} CPU cores; the Ray cluster has {cpus:g} (fewer workers, or a "
                    "larger cluster)"
                )

        wait_for_capacity(check_cpus)
        gpus = ray.cluster_resources().get("GPU", 0.0) if embeds else 0.0
        yield on_ray(workers, gpus=min(1.0, gpus / workers))


def _import_quietly(module: str) -> None:
    """Import a module; errors appear again when it is imported for use."""
    if module:
        with suppress(Exception):
            importlib.import_module(module)


def cluster_size() -> tuple[float, float]:
    """(CPU cores, GPUs) of the Ray cluster that this process is connected to."""
    import ray

    resources = ray.cluster_resources()
    return float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0))
