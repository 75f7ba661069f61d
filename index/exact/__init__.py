"""What makes a search exact: the definition of a cost, the bound on its rounding, and the second look where that leaves a doubt."""
