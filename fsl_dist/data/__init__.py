"""A sample is a row: packing, the catalogue, byte-range reads, decoding, loading ahead."""
