"""Building an index: shards, resumable jobs, merging, and publishing a version."""
