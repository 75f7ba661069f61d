"""Where a command runs (this machine, a Ray cluster, Kubernetes), and the command line `fsl-dist`."""
