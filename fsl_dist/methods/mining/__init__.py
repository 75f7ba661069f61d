"""Sources of deep kNN's neighbours: passes over all training images, neighbour tables, and a memory of embeddings."""
