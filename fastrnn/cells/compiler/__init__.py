"""From a cell's function to its program: the step, its derivative, and what lies between the two."""
