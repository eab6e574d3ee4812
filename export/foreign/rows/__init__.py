"""Where the rows of the input lie in every value of a network: the walk, and a rule for each operator."""
