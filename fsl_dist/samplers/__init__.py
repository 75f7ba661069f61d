"""Which sample ids make a batch: pure functions of (seed, epoch, step)."""
