"""Differentiable architecture search: a supernet, its hypergradient, and the genotypes they lead to."""

from nas.errors import InputError
from nas.final_network import FinalNetwork
from nas.genotype import Genotype, GenotypeFile, Provenance
from nas.hypergradient import FirstOrder, Onestage, State
from nas.supernet import Alphas, EdgeWeights, Supernet

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
