"""Pictures and pages: evidence, curves, maps of embeddings and prototypes."""
