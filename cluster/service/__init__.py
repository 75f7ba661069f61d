"""The index over HTTP: Ray Serve replicas, routes and request checks."""
