"""Sweeps over run settings: trials, early stopping, actors, reports."""
