"""An index served by Ray actors: the replicas, the server inside an actor, and the client."""
