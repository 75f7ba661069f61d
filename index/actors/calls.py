"""The state that a client keeps about its replicas and its pending requests."""

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
    """One actor, as seen by this client."""

    part: int
    """Index of the part of the shards that it serves."""

    name: str
    """Its name in Ray."""

    actor: "ActorHandle"
    """Handle for sending requests."""

    is_made_here: bool
    """Whether this client created the actor, and therefore ends it."""

    num_outstanding: int = 0
    """Requests of this client that are not answered yet."""

    probe: "ObjectRef[None] | None" = None
    """Set while the replica is unavailable (dead, silent or starting); resolves when it is back."""

    probed_at: float = 0.0
    """Time when the probe was sent (monotonic clock, seconds)."""

    is_dead: bool = False
    """The actor is dead and will not restart; it has to be replaced by a new actor."""


@dataclass(slots=True, eq=False)
class Call:
    """A pending request, with everything that is needed to repeat it on another replica."""

    version: ServedVersion
    """Version to search."""

    request: "Request | ObjectRef[Request]"
    """The request itself; a large one is stored once per machine in Ray's object store."""

    replica: Replica
    """The replica that received the request."""

    actor: "ActorHandle"
    """The replica's actor at the time of the request."""

    reference: "ObjectRef[list[Answer]]"
    """Reference to the future answer."""

    is_outstanding: bool = True
    """Whether the call still counts among its replica's outstanding requests."""


class _Lost(Exception):
    """A replica is dead, silent, or failed; the text completes the sentence "the actor serving …"."""

    def __init__(
        self,
        how: str,
        *,
        last_sign: float = -math.inf,
        is_dead: bool = False,
        error: BaseException | None = None,
    ) -> None:
        super().__init__(how)
        # The actor is dead and Ray will not restart it.
        self.is_dead = is_dead
        # The exception that was raised inside the actor, which is still alive.
        self.error = error
        # Last sign of life during this wait (monotonic clock, seconds).
        self.last_sign = last_sign
