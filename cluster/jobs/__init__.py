"""Commands that run elsewhere: a job is submitted to this machine, a Ray cluster or Kubernetes, and followed to its result."""
