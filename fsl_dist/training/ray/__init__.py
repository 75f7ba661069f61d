"""Training on Ray: Ray Train workers, and actors that mine neighbours concurrently."""
