"""Training on Ray: Train workers, and actors that mine while they train."""
