"""Many runs: sweeps over the dotted keys of a run's configuration."""
