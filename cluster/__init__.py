"""Where a run runs: this machine or a Ray cluster, and the command line `fsl-dist`."""
