"""Whether a command fits on the machines of a target: pieces of CPUs and GPUs, each of which needs one machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.jobs.command import Command
from index.base.errors import RequestError

if TYPE_CHECKING:
    from fsl_dist.config import RunConfig
    from tune.sweeps.config import SweepConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The resources of one machine of a cluster that are available for work."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """Workers, actors or tasks of one kind that run at the same time; each fits on one machine."""

    what: str
    """the settings that ask for them, with their values"""
    num: int
    cpus: float
    """of each"""
    gpus: float = 0.0
    """of each"""
    takes_gpus: bool = False
    """whether each takes one more GPU where there are GPUs at all"""


def find_demand(command: Command) -> list[Pieces]:
    """The resources that a command needs at the same time; empty if its own process does everything.

    Raises ConfigError as the command itself would.
    """
    if command.words == ("train",):
        from fsl_dist.config import load_config

        if command.config is None and "--resume" in command.rest:
            return []  # the run's own config.yaml applies, which may be on another machine
        return _of_run(load_config(command.config, command.settings))
    if command.words == ("sweep", "run") and command.config is not None:
        from tune.sweep_file import load_sweep
        from tune.sweeps.config import SweepConfig

        sweep = load_sweep(command.config, command.settings)
        return _of_sweep(sweep) if isinstance(sweep, SweepConfig) else []
    if command.words == ("index", "build") and (num := command.number("--workers")) and num > 1:
        return [Pieces(what=f"--workers {num}", num=num, cpus=1)]
    if num := command.number("--index-actors"):
        return [Pieces(what=f"--index-actors {num}", num=num, cpus=1)]
    if command.words == ("index", "serve"):
        actors, cpus = command.number("--actors") or 0, command.number("--cpus") or 1
        replicas = command.number("--replicas") or 1
        said = f"--replicas {replicas} with --actors {actors} and --cpus {cpus}"
        servers = Pieces(what=said, num=replicas, cpus=1 if actors else cpus)
        return [Pieces(what=said, num=replicas * actors, cpus=cpus), servers] if actors else [servers]
    return []


def check_demand(demand: Sequence[Pieces], machines: Sequence[Machine], where: str, way_out: str) -> None:
    """Refuse a command that can never run.

    Args:
        demand: the pieces that are needed at the same time.
        machines: all machines that are available for work.
        where: the cluster or pods that these machines are, for the error.
        way_out: how to get more of them, for the error.

    Raises:
        RequestError: the pieces do not fit on the machines; the message has both numbers.
    """
    free = [(machine.cpus, machine.gpus) for machine in machines]
    has_gpus = any(machine.gpus > 0 for machine in machines)
    for pieces in sorted(demand, key=lambda one: (one.gpus, one.cpus), reverse=True):
        gpus = pieces.gpus + (1 if pieces.takes_gpus and has_gpus else 0)
        left = pieces.num
        for number, (cpus_free, gpus_free) in enumerate(free):
            fits = min(left, _count(cpus_free, pieces.cpus), _count(gpus_free, gpus))
            free[number] = (cpus_free - fits * pieces.cpus, gpus_free - fits * gpus)
            left -= fits
        if left > 0:
            raise RequestError(
                f"{pieces.what} asks for {pieces.num} times {_show(pieces.cpus, gpus)}, and {where} has "
                f"{_show_machines(machines)}: {left} of them would wait forever ({way_out})"
            )


def _of_run(config: "RunConfig", *, num: int = 1, said: str = "", gpus: float | None = None) -> list[Pieces]:
    """The resources of `num` concurrent runs; gpus: of each worker, where a sweep sets them."""
    if not config.uses_ray:
        return []  # the command's own process, which gets all resources of a worker
    workers, mining = config.workers, config.mining
    pieces = [
        Pieces(
            what=f"{said}workers.num={workers.num} with workers.cpus={workers.cpus}",
            num=num * workers.num,
            cpus=workers.cpus,
            gpus=gpus or 0,
            takes_gpus=gpus is None and workers.gpu == "auto",
        )
    ]
    if mining.is_beside:
        what = f"{said}mining.actors={mining.actors} with mining.cpus={mining.cpus} and mining.gpus={mining.gpus:g}"
        pieces.append(Pieces(what=what, num=num * mining.actors, cpus=mining.cpus, gpus=mining.gpus))
    return pieces


def _of_sweep(config: "SweepConfig") -> list[Pieces]:
    base = config.trial_base()
    num = config.concurrency or 1
    said = f"concurrency={config.concurrency} trials of " if config.concurrency else "a trial of "
    gpus = config.resources.gpus / base.workers.num
    if base.uses_ray:
        return _of_run(base, num=num, said=said, gpus=gpus)
    what = f"{said}workers.cpus={base.workers.cpus} and resources.gpus={gpus:g}"
    return [Pieces(what=what, num=num, cpus=base.workers.cpus, gpus=gpus)]


def _count(free: float, amount: float) -> int:
    # Sums of binary fractions are inexact: ten trials of 0.1 GPU fit on one.
    return int(free / amount + 1e-9) if amount > 0 else 1_000_000_000


def _show(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")


def _show_machines(machines: Sequence[Machine]) -> str:
    kinds = {machine: machines.count(machine) for machine in machines}
    return (
        ", ".join(f"{num} times {_show(one.cpus, one.gpus)}" for one, num in kinds.items())
        or "nothing for work"
    )
