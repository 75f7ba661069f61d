"""The command line `fsl-dist`: its commands and their errors.
Torch, Ray and FAISS load in the commands that need them."""

import io
import sys

import click

from cluster.commands.baseline import baseline
from cluster.commands.bench import bench
from cluster.commands.catalogue import adopt, resplit
from cluster.commands.data import inspect, pack
from cluster.commands.explain import explain
from cluster.commands.export import export
from cluster.commands.fit import fit
from cluster.commands.head import add_class, choose_head, remove_class
from cluster.commands.index import index_group
from cluster.commands.job import job
from cluster.commands.k8s import k8s
from cluster.commands.messages import in_options, innermost, on_one_line
from cluster.commands.object_store_paths import PlacesGroup
from cluster.commands.output import configure_logging
from cluster.commands.plan import plan
from cluster.commands.plot import plot
from cluster.commands.predict import predict
from cluster.commands.reproduce import reproduce
from cluster.commands.run import demo, doctor, embed, evaluate, train
from cluster.commands.submit import submit
from cluster.commands.sweep import sweep
from cluster.commands.top import top
from cluster.commands.view import view
from index.base.errors import FslDistError
from index.base.object_cache import with_addresses
from index.base.stopping import Stopped, raising_on_sigterm


@click.group(
    cls=PlacesGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="fsl-dist")
def fsl_dist() -> None:
    """Distributed few-shot training and neighbour indexing for long-tailed images.

    Start with `fsl-dist demo`; `fsl-dist doctor` reports what this machine can do.
    """
    configure_logging(_in_options)


for command in (
    doctor,
    demo,
    pack,
    adopt,
    resplit,
    inspect,
    fit,
    train,
    embed,
    evaluate,
    choose_head,
    predict,
    add_class,
    remove_class,
    explain,
    view,
    export,
    baseline,
    plot,
    index_group,
    reproduce,
    sweep,
    submit,
    job,
    top,
    k8s,
    bench,
    plan,
):
    fsl_dist.add_command(command)


def _in_options(message: str) -> str:
    return in_options(message, fsl_dist, innermost(fsl_dist, sys.argv[1:]))


def main() -> None:
    """Run a command: exit 0 done, 1 failed, 2 bad request, 130 and 143 stopped by Ctrl-C and SIGTERM.

    A user's mistake is one line, never a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks, or that is not UTF-8, is shown with escapes, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with raising_on_sigterm():
            fsl_dist(standalone_mode=False)
    except FslDistError as error:
        click.echo(on_one_line(with_addresses(f"error: {_in_options(str(error))}")), err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        stop = (
            error.__cause__ if isinstance(error, click.Abort) else error
        )  # click's own answer to the latter
        stopped = stop if isinstance(stop, Stopped) else Stopped()
        click.echo(with_addresses(_in_options(str(stopped))), err=True)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        # A full disk, a folder without write permission, a file in place of a folder: the system's own message.
        click.echo(on_one_line(with_addresses(f"error: {error}")), err=True)
        sys.exit(1)
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        click.echo("error: a path contains a NUL character, which is not allowed in file names", err=True)
        sys.exit(2)


if __name__ == "__main__":  # python -m cluster.cli: used by jobs on machines without the installed script
    main()
