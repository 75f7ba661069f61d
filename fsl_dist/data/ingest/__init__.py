"""The write path of a data set: packing, appending, adopting foreign shards, new splits, duplicates."""
