"""The time budget of a fit: the time used, the speed of the machine, and the division of the rest."""
