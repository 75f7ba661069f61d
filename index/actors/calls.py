"""What a client keeps about its replicas and about the requests it waits for."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from index.actors.shard_server import Answer, ServedVersion
from index.shard import Request

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle


@dataclass(slots=True, eq=False)
class Replica:
    """One actor, as this client sees it."""

    part: int
    """Which part of the shards it serves."""

    name: str
    """Its name in Ray."""

    actor: "ActorHandle"
    """Where to send requests."""

    is_made_here: bool
    """Whether this client made it, and so ends it."""

    num_outstanding: int = 0
    """Requests of this client that it has not answered."""

    probe: "ObjectRef[None] | None" = None
    """Set while it is away (dead, silent, starting): what it answers first when it is back."""

    probed_at: float = 0.0
    """When the probe was sent (monotonic)."""

    is_dead: bool = False
    """It is away for good, and another actor is to be made in its place."""


@dataclass(slots=True, eq=False)
class Call:
    """A request on its way, and all that is needed to ask somebody else."""

    version: ServedVersion
    """Version to search."""

    request: "Request | ObjectRef[Request]"
    """What is asked; large ones lie in Ray's object store once for all actors of a machine."""

    replica: Replica
    """Who is asked."""

    actor: "ActorHandle"
    """Its actor when it was asked."""

    reference: "ObjectRef[list[Answer]]"
    """What it will answer."""

    is_outstanding: bool = True
    """Whether it counts among its replica's outstanding requests."""


class _Lost(Exception):
    """A replica is dead or silent, or failed; says how in words that follow "the actor serving …"."""

    def __init__(
        self,
        how: str,
        *,
        last_sign: float = -math.inf,
        is_dead: bool = False,
        error: BaseException | None = None,
    ) -> None:
        super().__init__(how)
        # Dead for good: Ray does not start it again.
        self.is_dead = is_dead
        # What was raised inside the actor, which is alive.
        self.error = error
        # When it last gave a sign of life while it was waited for (monotonic).
        self.last_sign = last_sign
