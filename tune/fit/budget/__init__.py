"""The time of a fit: what is used, what the machine does, and how the rest is divided."""
