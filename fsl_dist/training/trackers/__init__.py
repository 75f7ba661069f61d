"""MLflow and Weights & Biases: fed from a run's metrics file by threads of their own, so that no run waits for them or ends by them."""
