"""Sweeps over the settings of an index: each build is searched at a grid of parameters."""
