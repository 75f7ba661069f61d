"""One run: data, samplers, models, methods, training, evaluation."""
