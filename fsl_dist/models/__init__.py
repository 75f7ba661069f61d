"""Networks: backbones, embeddings, and batch norm that does not depend on the number of workers."""
