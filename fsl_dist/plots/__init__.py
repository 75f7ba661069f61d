"""Pictures and pages: evidence, curves, maps of embeddings, prototypes."""
