"""Sweeps over the settings of runs: trials, early stopping, Ray actors, reports."""
