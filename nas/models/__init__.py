"""The networks: primitives, the supernet of a search, the final network of a genotype, and their sizes."""
