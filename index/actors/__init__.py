"""An index whose shards are Ray actors: replicas, what runs in them, and the client."""
