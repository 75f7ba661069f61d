"""Sweeps over index settings: one build for each point, searched and compared."""
