"""The Ray actors that serve an index: found or created by name, chosen by load, replaced when they are lost."""

import contextlib
import logging
import math
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.actors.calls import Call, Replica, _Lost
from index.actors.shard_server import Answer, ServedVersion, ShardServer, deal_shards
from index.base.errors import FslDistError, PartialSearchError, RequestError
from index.shard import Request

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)

# The Ray namespace of the actors, shared by all clients of a Ray cluster.
NAMESPACE = "fsl-dist-index"
# Interval between two checks of an unavailable replica, and between two rounds if no replica answers.
_PAUSE_S = 0.05


class Replicas:
    """`num_parts` parts of an index's shards, each served by `num_replicas` actors that all clients of one Ray share.

    root: folder that was opened (an index or one of its versions); the actors' names contain it. Thread-safe.
    """

    def __init__(
        self,
        root: Path,
        num_parts: int,
        num_replicas: int,
        *,
        num_cpus: float,
        num_gpus: float,
        max_batch: int,
        timeout_s: float,
        silence_s: float,
        detached: bool,
    ) -> None:
        self.root = root
        self.num_parts = num_parts
        self.timeout_s = timeout_s
        self._silence_s = min(silence_s, timeout_s)
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._max_batch = max_batch
        self._detached = detached
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._draws = random.Random()  # noqa: S311  (which replica is asked)
        self._is_closed = False
        self._parts: list[list[Replica]] = [[] for _ in range(num_parts)]
        try:
            for part in range(num_parts):
                for number in range(num_replicas):
                    name = f"{root}, part {part + 1} of {num_parts}, replica {number + 1}"
                    self._parts[part].append(Replica(part, name, *self._find_or_make(part, name)))
        except BaseException:
            self.close()
            raise

    def open(self, version: ServedVersion, *, everywhere: bool) -> None:
        """Let all replicas open the version while they serve others; return once it can be searched.

        Without `everywhere`, one replica per part is enough. Raises VersionError if the version cannot be read, and
        PartialSearchError if replicas give no sign of life for `timeout_s`.
        """
        deadline = time.monotonic() + self.timeout_s
        opening = [
            (replica, replica.actor.open.remote(version))
            for replicas in self._parts
            for replica in ([r for r in replicas if r.probe is None] or replicas)
        ]
        is_open = [False] * self.num_parts
        failures: list[_Lost | None] = [None] * self.num_parts
        for replica, reference in opening:
            failure = self._open_on(replica, version, reference, deadline if everywhere else 0.0)
            is_open[replica.part] |= failure is None
            failures[replica.part] = failure or failures[replica.part]
        for part, failure in enumerate(failures):
            if failure is not None and (everywhere or not is_open[part]):
                if failure.error is not None:
                    raise self._as_error(failure, part, version, has_waited=False) from failure
                raise PartialSearchError(
                    f"no actor for {version.names(part, self.num_parts)} was ready within {self.timeout_s:g} s: it "
                    f"{failure}; {self._describe_need()}: free some or request fewer actors"
                ) from failure

    def ask(
        self, version: ServedVersion, request: "Request | ObjectRef[Request]", *, is_patient: bool
    ) -> "list[list[Answer] | PartialSearchError]":
        """Send the request to every part that has shards of this version; return each part's answers or its error.

        If a part has no replica left and `is_patient` is true, wait up to `timeout_s` for one.
        Raises VersionError if no replica can read the version.
        """
        parts = [p for p in range(self.num_parts) if deal_shards(version.num_shards, p, self.num_parts)]
        calls: list[Call] = []
        try:
            for part in parts:
                calls.append(self._send(part, version, request, []))  # noqa: PERF401  # one by one: see below
            return [self._wait_for(call, is_patient) for call in calls]
        finally:
            # An error of one part ends the whole request; do not wait for the other parts.
            for call in calls:
                self._release(call)

    def close(self, *, end_detached: bool = False) -> None:
        """End the actors that this client created; detached actors only on request, regardless of their creator."""
        import ray

        with self._making:
            self._is_closed = True
            if not ray.is_initialized():
                return  # the actors ended with Ray
            for replica in (replica for replicas in self._parts for replica in replicas):
                if end_detached or (replica.is_made_here and not self._detached):
                    ray.kill(replica.actor)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestError(f"the index {self.root} is closed; open it again")

    def _find_or_make(self, part: int, name: str) -> "tuple[ActorHandle, bool]":
        """The actor of that name, and whether it was created by this call."""
        import ray

        made = ray.remote(ShardServer).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached" if self._detached else None,
            num_cpus=self._num_cpus,
            num_gpus=self._num_gpus,
            max_restarts=-1,
            # Requests that a dead actor did not answer are sent to another replica, not to the same one after a
            # restart.
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        deadline = time.monotonic() + self.timeout_s
        while True:
            with contextlib.suppress(ValueError):  # no actor of this name
                return ray.get_actor(name, NAMESPACE), False
            try:
                num_threads = max(1, int(self._num_cpus))
                device = "gpu" if self._num_gpus else "cpu"
                return made.remote(part, self.num_parts, num_threads, self._max_batch, device), True
            except ray.exceptions.ActorAlreadyExistsError as error:  # another client created it concurrently
                if time.monotonic() > deadline:
                    raise PartialSearchError(f"cannot create actor '{name}': {error}") from None
            time.sleep(_PAUSE_S)

    def _open_on(
        self, replica: Replica, version: ServedVersion, reference: "ObjectRef[None]", deadline: float
    ) -> _Lost | None:
        """Wait until a replica has opened a version; return the error if it did not succeed by the deadline."""
        while True:
            actor = replica.actor
            try:
                self._result(actor, reference, moves_on=deadline == 0.0)
                return None
            except _Lost as lost:
                if lost.error is not None:
                    return lost
                # Another client may have just ended this actor; its name becomes free shortly.
                self._set_aside(replica, actor, version, lost)
                if time.monotonic() >= deadline:
                    return lost
                time.sleep(_PAUSE_S)
                reference = replica.actor.open.remote(version)

    def _send(
        self, part: int, version: ServedVersion, request: "Request | ObjectRef[Request]", tried: list[Replica]
    ) -> Call:
        """Send the request to one replica of a part: of two random ones, the one with fewer outstanding requests."""
        with self._lock:
            self._check_open()
            replicas = [replica for replica in self._parts[part] if replica not in tried]
            there = [replica for replica in replicas if self._is_there(replica, version)]
            drawn = self._draws.sample(there or replicas, min(2, len(there or replicas)))
            chosen = min(drawn, key=lambda replica: replica.num_outstanding)
            chosen.num_outstanding += 1
            dead = [replica for replica in replicas if replica.is_dead]
        try:
            for replica in dead:
                self._make_anew(replica, replica.actor, version)
            actor = chosen.actor
            return Call(version, request, chosen, actor, actor.answer.remote(version, request))
        except BaseException:
            with self._lock:
                chosen.num_outstanding -= 1
            raise

    def _release(self, call: Call) -> None:
        """Count a call as no longer outstanding, once."""
        with self._lock:
            call.replica.num_outstanding -= call.is_outstanding
            call.is_outstanding = False

    def _wait_for(self, call: Call, is_patient: bool) -> list[Answer] | PartialSearchError:
        """The answers to a call; if its replica is lost, the answers of another replica."""
        part = call.replica.part
        num_replicas = len(self._parts[part])
        moves_on = num_replicas > 1 or not is_patient
        tried: list[Replica] = []
        last_sign = time.monotonic()
        while True:
            tried.append(call.replica)
            try:
                return self._result(call.actor, call.reference, moves_on)
            except _Lost as lost:
                self._check_open()
                self._set_aside(call.replica, call.actor, call.version, lost)
                last_sign = max(last_sign, lost.last_sign)
                if len(tried) == num_replicas:
                    # A living actor would fail again if it were asked again; a dead one restarts.
                    is_over = not is_patient or time.monotonic() - last_sign >= self.timeout_s
                    if lost.error is not None or is_over:
                        error = self._as_error(lost, part, call.version, has_waited=is_over and is_patient)
                        if isinstance(error, PartialSearchError):
                            return error
                        raise error from lost
                    tried = []
                    time.sleep(_PAUSE_S)
            finally:
                self._release(call)
            call = self._send(part, call.version, call.request, tried)

    def _result(self, actor: "ActorHandle", reference: "ObjectRef[Any]", moves_on: bool) -> Any:
        """The result of an actor's call, however long it takes; raises _Lost if the actor dies, fails or is silent.

        A silent actor is waited for `timeout_s`, or `silence_s` if the caller `moves_on` to another replica.
        """
        import ray

        start = time.monotonic()
        last_sign = -math.inf
        while True:
            try:
                return ray.get(reference, timeout=self._silence_s / 2)
            except ray.exceptions.GetTimeoutError:
                # Working or lost? A working actor answers a ping while it searches.
                answered, _ = ray.wait([actor.ping.remote()], timeout=self._silence_s / 2)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise _Lost(f"failed: {type(cause).__name__}: {cause}", error=cause) from error
            except ray.exceptions.RayError as error:
                is_dead = isinstance(error, ray.exceptions.ActorDiedError)
                how = f"did not answer ({type(error).__name__})"
                raise _Lost(how, last_sign=last_sign, is_dead=is_dead) from error
            now = time.monotonic()
            silent_s = now - max(start, last_sign)
            # The ping of a dead actor returns an error, and so does its pending answer.
            if answered:
                last_sign = now
            elif moves_on or silent_s >= self.timeout_s:
                raise _Lost(f"did not answer for {silent_s:.0f} s", last_sign=last_sign)

    def _set_aside(self, replica: Replica, actor: "ActorHandle", version: ServedVersion, lost: _Lost) -> None:
        """Mark a replica as lost: other replicas are preferred until it has answered a probe."""
        if lost.error is not None:
            return
        with self._lock:
            if replica.probe is None and replica.actor is actor:
                log.warning(
                    "the actor serving %s %s; other replicas are used until it is back", replica.name, lost
                )
                self._probe(replica, version)
        if lost.is_dead:
            self._make_anew(replica, actor, version)

    def _make_anew(self, replica: Replica, dead: "ActorHandle", version: ServedVersion) -> None:
        """Create another actor in place of one that Ray does not restart because its creator has ended."""
        with self._making:
            if self._is_closed or replica.actor is not dead:
                return
            actor, is_made_here = self._find_or_make(replica.part, replica.name)
            with self._lock:
                replica.is_dead = False
                if actor != dead:  # otherwise it does restart; its creator's handle keeps it alive
                    replica.actor, replica.is_made_here = actor, is_made_here
                self._probe(replica, version)

    def _probe(self, replica: Replica, version: ServedVersion) -> None:
        replica.probe = replica.actor.open.remote(version)
        replica.probed_at = time.monotonic()

    def _is_there(self, replica: Replica, version: ServedVersion) -> bool:
        """Whether a replica can be used: it was not lost, or has opened the version since."""
        import ray

        if replica.probe is None:
            return True
        if not ray.wait([replica.probe], timeout=0)[0]:
            return False
        try:
            ray.get(replica.probe)
        except ray.exceptions.RayTaskError:
            pass  # the actor is alive; a query will report the error
        except ray.exceptions.RayError as error:
            replica.is_dead = isinstance(error, ray.exceptions.ActorDiedError)
            if time.monotonic() - replica.probed_at >= _PAUSE_S:
                self._probe(replica, version)
            return False
        log.warning("the actor serving %s is back", replica.name)
        replica.probe = None
        return True

    def _as_error(self, lost: _Lost, part: int, version: ServedVersion, *, has_waited: bool) -> FslDistError:
        if isinstance(lost.error, FslDistError):
            return lost.error
        waited = f", and no replica came back within {self.timeout_s:g} s" if has_waited else ""
        return PartialSearchError(
            f"the actor serving {version.names(part, self.num_parts)} {lost}{waited}; open the index again, or allow "
            "partial answers (partial=allow)"
        )

    def _describe_need(self) -> str:
        """The resources that all actors request from Ray, and those that Ray has."""
        import ray

        num_actors = sum(map(len, self._parts))
        has, free = ray.cluster_resources(), ray.available_resources()
        needs = [("CPU", self._num_cpus), *([("GPU", self._num_gpus)] if self._num_gpus else [])]
        return "; ".join(
            f"{num_actors} actors of {each:g} {name}s need {num_actors * each:g}, Ray has {has.get(name, 0):g}, "
            f"{free.get(name, 0):g} of them free"
            for name, each in needs
        )
