"""Evaluation of a trained run: protocols, baselines, evidence."""
