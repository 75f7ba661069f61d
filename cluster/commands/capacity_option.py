"""The option of commands that wait for a Ray cluster's nodes."""

import os

import click


def _set(context: click.Context, parameter: click.Parameter, seconds: float | None) -> None:
    """Set the variable that this process and those that it starts read, until the command ends."""
    if seconds is None:
        return
    from fsl_dist.training.ray.capacity import TIMEOUT_VARIABLE

    before = os.environ.get(TIMEOUT_VARIABLE)

    def restore() -> None:
        if before is None:
            os.environ.pop(TIMEOUT_VARIABLE, None)
        else:
            os.environ[TIMEOUT_VARIABLE] = before

    context.call_on_close(restore)
    os.environ[TIMEOUT_VARIABLE] = str(seconds)


CAPACITY = click.option(
    "--capacity-timeout-s",
    type=click.FloatRange(min=0),
    expose_value=False,
    callback=_set,
    help="Seconds to wait while the Ray cluster of RAY_ADDRESS has less than this command needs. Default: 0; in a job 600.",
)
