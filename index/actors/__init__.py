"""An index spread over Ray actors: replicas, what runs inside them, and the client."""
