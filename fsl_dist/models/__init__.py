"""The networks: backbones, embeddings, batch norm that does not depend on workers."""
