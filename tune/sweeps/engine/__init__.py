"""A sweep's trials under `ray.tune.Tuner`: what runs them, proposes them,
schedules them and writes down how they end."""
