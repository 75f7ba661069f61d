"""The papers' equations as pure functions of embeddings."""
