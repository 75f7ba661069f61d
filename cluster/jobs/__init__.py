"""Jobs: commands that are submitted to this machine, a Ray cluster or Kubernetes, and followed to their result."""
