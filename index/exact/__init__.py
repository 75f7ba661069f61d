"""What makes a search exact: the definition of a cost, the bound on its rounding,
and a second pass for doubtful queries."""
