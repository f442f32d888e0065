"""Differentiable architecture search: a supernet, its hypergradient, and the genotypes they lead to."""

from nas.bilevel.hypergradient import FirstOrder, Onestage, State
from nas.errors import InputError
from nas.models.final_network import FinalNetwork
from nas.models.supernet import Alphas, EdgeWeights, Supernet
from nas.search_space.genotype import Genotype, GenotypeFile, Provenance

__all__ = [
    "Alphas",
    "EdgeWeights",
    "FinalNetwork",
    "FirstOrder",
    "Genotype",
    "GenotypeFile",
    "InputError",
    "Onestage",
    "Provenance",
    "State",
    "Supernet",
]
