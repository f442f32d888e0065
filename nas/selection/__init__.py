"""Several searches: their jobs, the training of their cells, and the choice of the best one."""
