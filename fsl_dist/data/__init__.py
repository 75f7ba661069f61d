"""The read path of a data set: catalogue, byte-range reads, decoding and prefetching."""
