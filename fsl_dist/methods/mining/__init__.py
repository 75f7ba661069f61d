"""Where deep kNN finds its neighbours: passes over all training images, tables of neighbours, and a memory of embeddings."""
