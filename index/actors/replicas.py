"""The Ray actors that serve an index: found or made by name, chosen by load, replaced when they are lost."""

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

# Actors are found by name here, by all clients of one Ray.
NAMESPACE = "fsl-dist-index"
# Between two looks at a replica that is away, and between two rounds over replicas none of which answers.
_PAUSE_S = 0.05


class Replicas:
    """`num_parts` parts of an index's shards, each served by `num_replicas` actors that all clients of one Ray share.

    root: what was opened, an index or a version's folder; actors are named by it. Threads may share this.
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
        """Have the version opened by all replicas, beside what they answer; returns when it can be searched.

        Without `everywhere` one replica of each part is enough. Raises VersionError for what cannot be read,
        PartialSearchError where replicas give no sign of life for `timeout_s`.
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
                    f"{failure}; {self._describe_need()}: free some or ask for fewer actors"
                ) from failure

    def ask(
        self, version: ServedVersion, request: "Request | ObjectRef[Request]", *, is_patient: bool
    ) -> "list[list[Answer] | PartialSearchError]":
        """Ask every part that has shards of this version; each one's answers, or why there are none.

        Where no replica of a part is left and it `is_patient`, it waits up to `timeout_s` for one to come back.
        Raises VersionError where no replica can read the version.
        """
        parts = [p for p in range(self.num_parts) if deal_shards(version.num_shards, p, self.num_parts)]
        calls: list[Call] = []
        try:
            for part in parts:
                calls.append(self._send(part, version, request, []))  # noqa: PERF401  # one by one: see below
            return [self._wait_for(call, is_patient) for call in calls]
        finally:
            # Where one part's error ends the whole, nobody waits for the others.
            for call in calls:
                self._release(call)

    def close(self, *, end_detached: bool = False) -> None:
        """End the actors that this client made; detached ones only if asked, and then whoever made them."""
        import ray

        with self._making:
            self._is_closed = True
            if not ray.is_initialized():
                return  # and with Ray went its actors
            for replica in (replica for replicas in self._parts for replica in replicas):
                if end_detached or (replica.is_made_here and not self._detached):
                    ray.kill(replica.actor)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestError(f"the index {self.root} is closed; open it again")

    def _find_or_make(self, part: int, name: str) -> "tuple[ActorHandle, bool]":
        """The actor of that name, and whether it was made just now."""
        import ray

        made = ray.remote(ShardServer).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached" if self._detached else None,
            num_cpus=self._num_cpus,
            num_gpus=self._num_gpus,
            max_restarts=-1,
            # What a dead actor had not answered is asked of another one, not of the same one when it is back.
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        deadline = time.monotonic() + self.timeout_s
        while True:
            with contextlib.suppress(ValueError):  # there is none
                return ray.get_actor(name, NAMESPACE), False
            try:
                num_threads = max(1, int(self._num_cpus))
                device = "gpu" if self._num_gpus else "cpu"
                return made.remote(part, self.num_parts, num_threads, self._max_batch, device), True
            except ray.exceptions.ActorAlreadyExistsError as error:  # another client made it at this moment
                if time.monotonic() > deadline:
                    raise PartialSearchError(f"no actor '{name}' can be made: {error}") from None
            time.sleep(_PAUSE_S)

    def _open_on(
        self, replica: Replica, version: ServedVersion, reference: "ObjectRef[None]", deadline: float
    ) -> _Lost | None:
        """Wait until a replica has opened a version; what went wrong, if it was not mended by the deadline."""
        while True:
            actor = replica.actor
            try:
                self._result(actor, reference, moves_on=deadline == 0.0)
                return None
            except _Lost as lost:
                if lost.error is not None:
                    return lost
                # It may be one that another client has just ended; its name is free in a moment.
                self._set_aside(replica, actor, version, lost)
                if time.monotonic() >= deadline:
                    return lost
                time.sleep(_PAUSE_S)
                reference = replica.actor.open.remote(version)

    def _send(
        self, part: int, version: ServedVersion, request: "Request | ObjectRef[Request]", tried: list[Replica]
    ) -> Call:
        """Ask one replica of a part: of two drawn at random the one with fewer outstanding requests."""
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
        """The answers to a call; where its replica is lost, another one's."""
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
                    # What one alive actor cannot do it cannot do a moment later either; a dead one comes back.
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
        """What an actor answers, however long it works; _Lost where it dies, fails, or gives no sign of life.

        A silent one is waited for `timeout_s`, or where the caller `moves_on` to another, `silence_s`.
        """
        import ray

        start = time.monotonic()
        last_sign = -math.inf
        while True:
            try:
                return ray.get(reference, timeout=self._silence_s / 2)
            except ray.exceptions.GetTimeoutError:
                # At work, or gone? An actor answers a ping while it searches.
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
            # A dead actor's ping comes back, too, as an error; and so does its answer, then.
            if answered:
                last_sign = now
            elif moves_on or silent_s >= self.timeout_s:
                raise _Lost(f"did not answer for {silent_s:.0f} s", last_sign=last_sign)

    def _set_aside(self, replica: Replica, actor: "ActorHandle", version: ServedVersion, lost: _Lost) -> None:
        """Note that a replica is lost: others are preferred until it has answered a probe."""
        if lost.error is not None:
            return
        with self._lock:
            if replica.probe is None and replica.actor is actor:
                log.warning("the actor serving %s %s; others are asked until it is back", replica.name, lost)
                self._probe(replica, version)
        if lost.is_dead:
            self._make_anew(replica, actor, version)

    def _make_anew(self, replica: Replica, dead: "ActorHandle", version: ServedVersion) -> None:
        """Another actor in the place of one that Ray does not start again: whoever made it is gone."""
        with self._making:
            if self._is_closed or replica.actor is not dead:
                return
            actor, is_made_here = self._find_or_make(replica.part, replica.name)
            with self._lock:
                replica.is_dead = False
                if actor != dead:  # else it comes back after all; the handle of who made it keeps it alive
                    replica.actor, replica.is_made_here = actor, is_made_here
                self._probe(replica, version)

    def _probe(self, replica: Replica, version: ServedVersion) -> None:
        replica.probe = replica.actor.open.remote(version)
        replica.probed_at = time.monotonic()

    def _is_there(self, replica: Replica, version: ServedVersion) -> bool:
        """Whether a replica may be asked: it was not lost, or has opened the version since."""
        import ray

        if replica.probe is None:
            return True
        if not ray.wait([replica.probe], timeout=0)[0]:
            return False
        try:
            ray.get(replica.probe)
        except ray.exceptions.RayTaskError:
            pass  # it is alive; a query will be told what is wrong
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
        waited = f", and none came back within {self.timeout_s:g} s" if has_waited else ""
        return PartialSearchError(
            f"the actor serving {version.names(part, self.num_parts)} {lost}{waited}; open the index again, or allow "
            "partial answers (partial=allow)"
        )

    def _describe_need(self) -> str:
        """What all actors ask Ray for, and what it has."""
        import ray

        num_actors = sum(map(len, self._parts))
        has, free = ray.cluster_resources(), ray.available_resources()
        needs = [("CPU", self._num_cpus), *([("GPU", self._num_gpus)] if self._num_gpus else [])]
        return "; ".join(
            f"{num_actors} actors of {each:g} {name}s need {num_actors * each:g}, Ray has {has.get(name, 0):g}, "
            f"{free.get(name, 0):g} of them free"
            for name, each in needs
        )
