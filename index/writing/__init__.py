"""Building an index: shards, resumable jobs, changes, and publishing a version."""
