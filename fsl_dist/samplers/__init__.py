"""Which sample ids make a batch, as pure functions of (seed, epoch, step)."""
