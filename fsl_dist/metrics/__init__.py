"""Scores: embeddings and labels in, numbers out; no run, no file."""
