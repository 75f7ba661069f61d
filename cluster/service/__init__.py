"""The index over HTTP: Ray Serve replicas, routes and checks of requests."""
