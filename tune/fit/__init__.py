"""`fit`: the best model that a budget of minutes buys, chosen on validation images."""
