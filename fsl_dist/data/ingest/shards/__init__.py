"""Existing tar shards: which files they are, their members, the samples and images in them."""
