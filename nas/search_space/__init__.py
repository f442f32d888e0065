"""What can be searched and what is found: primitives, edges, genotypes, their forms and pictures."""
