"""The command group `k8s`: what a cluster's administrator is asked for."""

import click
import yaml

ROLE_EXAMPLE = "Example: fsl-dist k8s rights --namespace research | kubectl apply -f -"


@click.group()
def k8s() -> None:
    """Objects that a Kubernetes cluster needs before jobs are submitted to it.

    \b
    Example:
      fsl-dist k8s rights --namespace research | kubectl apply -f -
    """


@k8s.command(epilog=ROLE_EXAMPLE)
@click.option("--namespace", default="fsl-dist", show_default=True, help="Where jobs run.")
def rights(namespace: str) -> None:
    """Print the Role of people who submit jobs: all rights that submit and job use, and no others."""
    from cluster.jobs.kuberay.rendering import KubeOptions
    from cluster.jobs.kuberay.rights import render_role

    role = render_role(KubeOptions(namespace=namespace).namespace)
    click.echo(yaml.safe_dump(role, sort_keys=False), nl=False)
