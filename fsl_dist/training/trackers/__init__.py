"""MLflow and Weights & Biases: separate threads send a run's metrics file,
so that a tracker never delays or ends a run."""
