"""Many runs: sweeps over the dotted keys of a configuration, and the tables of the papers."""
