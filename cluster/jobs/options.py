"""The command-line options that name the target of a job, and the target they open."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.jobs.job import JobPlace
from index.base.errors import RequestError

if TYPE_CHECKING:
    from cluster.jobs.kuberay.rendering import KubeOptions

_PLACES = ("local", "ray", "kuberay")
_TO = click.option(
    "--to",
    type=click.Choice(_PLACES),
    default="local",
    show_default=True,
    help="This machine, a Ray cluster, or Kubernetes with KubeRay.",
)
_ADDRESS = click.option(
    "--address", help="ray: URL of the dashboard; RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."
)
_NAMESPACE = click.option("--namespace", help="kuberay: the namespace.")


def on_place(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that name the target of a job."""
    return _TO(_ADDRESS(_NAMESPACE(function)))


_API_TIMEOUT = click.option(
    "--api-timeout-s",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds for which the target may be unreachable while a job is followed.",
)
_WAIT = click.option(
    "--wait-s",
    type=click.FloatRange(min=0),
    help="Exit with 3 if the job has not started after these seconds.",
)


def on_followed(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of commands that follow a job."""
    return _WAIT(_API_TIMEOUT(function))


def open_place(
    to: str,
    *,
    address: str | None,
    kube: "KubeOptions | None",
    wheel: Path | None = None,
    ships: bool = True,
    timeout_s: float = 300.0,
) -> JobPlace:
    if to == "local":
        from cluster.jobs.local import LocalPlace

        return LocalPlace()
    if to == "ray":
        from cluster.jobs.ray import RayPlace

        return RayPlace(address or "", wheel=wheel, ships=ships, timeout_s=timeout_s)
    from cluster.jobs.kuberay.place import KubeRayPlace

    assert kube is not None
    return KubeRayPlace(kube, timeout_s=timeout_s)


def kube_of(to: str, namespace: str | None, address: str | None) -> "KubeOptions | None":
    """The Kubernetes options for looking up a job; None for other targets."""
    refuse_foreign_options(to, address=address, namespace=namespace)
    return kube_options({"namespace": namespace}) if to == "kuberay" else None


def kube_options(given: dict[str, Any]) -> "KubeOptions":
    from cluster.jobs.kuberay.rendering import KubeOptions

    return KubeOptions(**{name: value for name, value in given.items() if value is not None})


def refuse_foreign_options(to: str, **given: Any) -> None:
    """Raise RequestError for an option that belongs to another target than `to`."""
    of_ray = ("address", "wheel", "no_ship")
    for name, value in given.items():
        owner = "ray" if name in of_ray else "kuberay"
        if value not in (None, False) and to != owner:
            raise RequestError(f"--{name.replace('_', '-')} needs --to {owner}; this is --to {to}")
    if given.get("wheel") is not None and given.get("no_ship"):
        raise RequestError("--wheel names what is sent, and --no-ship sends nothing; give one of them")


def way_back(name: str, to: str, address: str | None, namespace: str | None) -> str:
    where = f" --address {address}" if address else ""
    where += f" --namespace {namespace}" if namespace else ""
    return f"fsl-dist job logs {name} --follow --to {to}{where}"
