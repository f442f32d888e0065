"""Cells in the forms of two other libraries, and any form read from its content alone.

NNI: microsoft/nni, nni/nas/hub/pytorch/nasnet.py, `DARTS.load_searched_model`; the keys are made in
nni/nas/nn/pytorch/cell.py. Of edge e (0, 1) of node n (2 to 5), `normal/op_n_e` is the primitive and `normal/input_n_e`
the source state: `[0]` since version 3, which takes nothing else; version 2 wrote `0` and reads both. So lists are
written, and either is read. `width` and `depth`, which the same dictionary may hold, are no part of a cell: skipped.

NAS-Bench-301: automl/nasbench301, nasbench301/representations.py (`convert_genotype_to_config`) and configspace.json;
the same form is `config` in automl/NASLib, naslib/search_spaces/nasbench301/conversions.py. Every key begins with
`NetworkSelectorDatasetInfo:darts:`. `edge_normal_i` is the primitive of edge i, with edges numbered as in
`search_space.edges`; `inputs_node_normal_n`, for nodes 3 to 5, are the two source states, as "0_2". Node 2 has no such
key, as it can only take 0 and 1. The hyperparameters of training that configspace.json has beside them are skipped.

Both know cells of four nodes, all of them concatenated, and the primitives of `search_space.PRIMITIVES` without none.
NAS-Bench-301's has no place for two edges from one source to one node, nor for the order of the two edges of a node,
which means nothing: what is read from it has them by rising source.
"""

import json
import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from nas import files
from nas.errors import InputError
from nas.genotype import Genotype, GenotypeFile, Provenance, first_problem
from nas.search_space import EDGES_PER_NODE, NUM_INPUTS, PRIMITIVES, edges

CELLS = ("normal", "reduce")
NODES = range(NUM_INPUTS, NUM_INPUTS + 4)
KNOWN = PRIMITIVES[1:]
FIRST_EDGE = {node: edges(len(NODES)).index((0, node)) for node in NODES}

NASBENCH301_PREFIX = "NetworkSelectorDatasetInfo:darts:"
_NO_CELL_IN_NNI = re.compile("width|depth")
_NO_CELL_IN_NASBENCH301 = re.compile(
    "(?:CreateImageDataLoader|ImageAugmentation|LossModuleSelectorIndices|OptimizerSelector"
    "|SimpleLearningrateSchedulerSelector|SimpleTrainNode):.*"
    f"|NetworkSelectorDatasetInfo:network|{NASBENCH301_PREFIX}(?:auxiliary|drop_path_prob|init_channels|layers)"
)


def to_nni(genotype: Genotype) -> dict[str, Any]:
    """The dictionary of NNI's DARTS space.

    Raises:
        InputError: the form cannot express the cells; what it is, is named.
    """
    _must_fit(genotype, "NNI's DARTS space")
    content: dict[str, Any] = {}
    for cell in CELLS:
        for index, (primitive, source) in enumerate(getattr(genotype, cell)):
            edge = f"{index // EDGES_PER_NODE + NUM_INPUTS}_{index % EDGES_PER_NODE}"
            content |= {f"{cell}/op_{edge}": primitive, f"{cell}/input_{edge}": [source]}
    return content


def from_nni(content: dict[str, Any]) -> Genotype:
    """The cells in such a dictionary.

    Raises:
        InputError: a field is missing, unknown or wrong; it is named.
    """
    fields = dict(content)
    cells: dict[str, list[tuple[str, int]]] = {cell: [] for cell in CELLS}
    for cell in CELLS:
        for node in NODES:
            for edge in range(EDGES_PER_NODE):
                primitive = _take(fields, f"{cell}/op_{node}_{edge}", KNOWN)
                key = f"{cell}/input_{node}_{edge}"
                source = fields.get(key)
                if type(source) is list and len(source) == 1:
                    fields[key] = source[0]
                cells[cell].append((primitive, _take(fields, key, range(node))))
    _must_be_empty(fields, _NO_CELL_IN_NNI)
    return _genotype(cells)


def to_nasbench301(genotype: Genotype) -> dict[str, Any]:
    """The dictionary of NAS-Bench-301's configuration space, as far as it is about cells.

    Raises:
        InputError: the form cannot express the cells; what it is, is named.
    """
    _must_fit(genotype, "NAS-Bench-301's space")
    content: dict[str, Any] = {}
    for cell in CELLS:
        genes = getattr(genotype, cell)
        for node in NODES:
            start = EDGES_PER_NODE * (node - NUM_INPUTS)
            kept = sorted(genes[start : start + EDGES_PER_NODE], key=lambda gene: gene[1])
            if kept[0][1] == kept[1][1]:
                raise InputError(
                    f"{cell}: both edges of node {node} come from state {kept[0][1]}, "
                    "and NAS-Bench-301's space has one edge from a state to a node."
                )
            for primitive, source in kept:
                content[f"{NASBENCH301_PREFIX}edge_{cell}_{FIRST_EDGE[node] + source}"] = primitive
            if node != NUM_INPUTS:
                content[f"{NASBENCH301_PREFIX}inputs_node_{cell}_{node}"] = f"{kept[0][1]}_{kept[1][1]}"
    return content


def from_nasbench301(content: dict[str, Any]) -> Genotype:
    """The cells in such a dictionary, the edges of a node by rising source.

    Raises:
        InputError: a field is missing, unknown or wrong, or there is an edge that its node does not take.
    """
    fields = dict(content)
    cells: dict[str, list[tuple[str, int]]] = {cell: [] for cell in CELLS}
    for cell in CELLS:
        for node in NODES:
            pairs = {f"{one}_{two}": (one, two) for one, two in combinations(range(node), EDGES_PER_NODE)}
            key = f"{NASBENCH301_PREFIX}inputs_node_{cell}_{node}"
            for source in pairs["0_1" if node == NUM_INPUTS else _take(fields, key, tuple(pairs))]:
                edge = f"{NASBENCH301_PREFIX}edge_{cell}_{FIRST_EDGE[node] + source}"
                cells[cell].append((_take(fields, edge, KNOWN), source))
    _must_be_empty(fields, _NO_CELL_IN_NASBENCH301)
    return _genotype(cells)


def read(data: bytes) -> tuple[Genotype, Provenance]:
    """The genotype in a file's bytes, in whichever form: a genotype file, NNI's, NAS-Bench-301's, or the papers' text.

    What begins with `{` is JSON, and its keys tell which; anything else is text. Only a genotype file has a provenance.

    Raises:
        InputError: it is of no such form, or wrong in it.
    """
    try:
        text = data.decode()
        if not text.lstrip().startswith("{"):
            return Genotype.from_text(text), Provenance()
        content: dict[str, Any] = json.loads(text, object_pairs_hook=files.each_key_once)
        if "format_version" in content:
            file = GenotypeFile.model_validate_json(data)
            return Genotype(**file.cells()), file.provenance
        return _reader(content)(content), Provenance()
    except InputError:
        raise
    except ValidationError as error:
        raise InputError(first_problem(error)) from None
    except UnicodeDecodeError:
        raise InputError("neither JSON nor text, as it is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}).") from None


def _reader(content: dict[str, Any]) -> Callable[[dict[str, Any]], Genotype]:
    if any(key.startswith(NASBENCH301_PREFIX) for key in content):
        return from_nasbench301
    if any(key.startswith(("normal/", "reduce/")) for key in content):
        return from_nni
    raise InputError(
        "JSON, but no cells: a genotype file has format_version, NNI's form has normal/op_2_0, "
        f"NAS-Bench-301's {NASBENCH301_PREFIX}edge_normal_0."
    )


def _must_fit(genotype: Genotype, space: str) -> None:
    for cell in CELLS:
        genes, concat = getattr(genotype, cell), getattr(genotype, f"{cell}_concat")
        if len(genes) != len(NODES) * EDGES_PER_NODE:
            num_nodes = len(genes) // EDGES_PER_NODE
            raise InputError(f"{cell}: {num_nodes} nodes, and cells of {space} have {len(NODES)}.")
        for primitive, _ in genes:
            if primitive not in KNOWN:
                raise InputError(f"{cell}: {primitive}, which {space} does not have.")
        if concat != tuple(NODES):
            raise InputError(f"{cell}_concat: {list(concat)}, and cells of {space} concatenate all nodes.")


def _take(fields: dict[str, Any], key: str, allowed: Any) -> Any:
    """Remove a field and return its value, which must be among those allowed, and of their type."""
    if key not in fields:
        raise InputError(f"{key}: missing.")
    value = fields.pop(key)
    if type(value) is not type(allowed[0]) or value not in allowed:
        raise InputError(f"{key}: must be one of {', '.join(map(str, allowed))}, got {value!r:.40}.")
    return value


def _must_be_empty(fields: dict[str, Any], skipped: re.Pattern) -> None:
    for key in fields:
        if not skipped.fullmatch(key):
            raise InputError(f"{key!r:.80}: unknown field, or an edge that its node does not take.")


def _genotype(cells: dict[str, list[tuple[str, int]]]) -> Genotype:
    return Genotype(
        normal=tuple(cells["normal"]),
        normal_concat=tuple(NODES),
        reduce=tuple(cells["reduce"]),
        reduce_concat=tuple(NODES),
    )
