"""Scores of an embedding: kNN votes, prototypes, the papers' metrics."""
