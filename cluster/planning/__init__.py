"""Estimates of a run's duration on other machines: measured rates, and the model that scales them."""
