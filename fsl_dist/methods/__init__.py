"""One file a method: the batches it wants, its loss, what it keeps."""
