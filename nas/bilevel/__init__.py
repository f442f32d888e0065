"""Bilevel optimisation: the hypergradient, and the step that moves alphas and weights."""
