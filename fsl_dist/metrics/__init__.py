"""Scores: embeddings and labels in, numbers out."""
