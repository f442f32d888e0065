"""Differentiable architecture search: a supernet, its hypergradient, and the genotypes they lead to."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.bilevel.evaluation import State
    from nas.bilevel.hypergradient import Exact, FirstOrder, Onestage
    from nas.errors import InputError
    from nas.models.final_network import FinalNetwork
    from nas.models.primitives import Primitive, register_primitive
    from nas.models.supernet import Alphas, EdgeWeights, Supernet
    from nas.opened_run import OpenedRun, open_run
    from nas.search_space.genotype import Genotype
    from nas.search_space.genotype_file import GenotypeFile, Provenance

__all__ = [
    "Alphas",
    "EdgeWeights",
    "Exact",
    "FinalNetwork",
    "FirstOrder",
    "Genotype",
    "GenotypeFile",
    "InputError",
    "Onestage",
    "OpenedRun",
    "Primitive",
    "Provenance",
    "State",
    "Supernet",
    "open_run",
    "register_primitive",
]

_MODULES = {
    **dict.fromkeys(("Exact", "FirstOrder", "Onestage"), "nas.bilevel.hypergradient"),
    **dict.fromkeys(("Alphas", "EdgeWeights", "Supernet"), "nas.models.supernet"),
    **dict.fromkeys(("GenotypeFile", "Provenance"), "nas.search_space.genotype_file"),
    **dict.fromkeys(("OpenedRun", "open_run"), "nas.opened_run"),
    "State": "nas.bilevel.evaluation",
    **dict.fromkeys(("Primitive", "register_primitive"), "nas.models.primitives"),
    "FinalNetwork": "nas.models.final_network",
    "Genotype": "nas.search_space.genotype",
    "InputError": "nas.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds to import, and --help does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
