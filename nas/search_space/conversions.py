"""Cells in the forms of two other libraries, and the cells in any JSON or dictionary.

NNI: microsoft/nni, nni/nas/hub/pytorch/nasnet.py, `DARTS.load_searched_model`; the keys are made in
nni/nas/nn/pytorch/cell.py. Of edge e (0, 1) of node n (2 to 5), `normal/op_n_e` is the primitive and `normal/input_n_e`
the source state: `[0]` since version 3, which takes nothing else; version 2 wrote `0` and reads both. So lists are
written, and either is read. `width` and `depth`, which the same dictionary may hold, are no part of a cell: skipped.

NNI 1, and the first ones of version 2: examples/nas/darts/model.py and src/sdk/pynni/nni/nas/pytorch/mutator.py.
`normal_n2_p0` is the operation from state 0 to node 2, as a name, as its number among the seven, or as seven booleans;
`normal_n2_switch` are the two sources, as names of the former, as numbers, or as booleans.

NAS-Bench-301: automl/nasbench301, nasbench301/representations.py (`convert_genotype_to_config`) and configspace.json;
the same form is `config` in automl/NASLib, naslib/search_spaces/nasbench301/conversions.py. Every key begins with
`NetworkSelectorDatasetInfo:darts:`. `edge_normal_i` is the primitive of edge i, with edges numbered as in
`DARTS.edges`; `inputs_node_normal_n`, for nodes 3 to 5, are the two source states, as "0_2". Node 2 has no such
key, as it can only take 0 and 1. The hyperparameters of training that configspace.json has beside them are skipped.

All know cells of four nodes, all of them concatenated, and the primitives of `DARTS` without none.
NAS-Bench-301's has no place for two edges from one source to one node, nor for the order of the two edges of a node,
which means nothing: what is read from it has them by rising source.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from nas.errors import InputError, count, first_problem
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.text import FIELDS, OTHER_NAMES, Fields, Found, fields_of, find_all

CELLS = ("normal", "reduce")
NODES = DARTS.nodes(4)
KNOWN = DARTS.derived_primitives
FIRST_EDGE = {node: DARTS.edges(len(NODES)).index((0, node)) for node in NODES}

NASBENCH301_PREFIX = "NetworkSelectorDatasetInfo:darts:"
NNI_1 = ("maxpool", "avgpool", "skipconnect", "sepconv3x3", "sepconv5x5", "dilconv3x3", "dilconv5x5")


def to_nni(genotype: Genotype) -> dict[str, Any]:
    """Make the dictionary of NNI's DARTS space.

    Raises:
        InputError: the form cannot express the cells; the sentence says why.
    """
    _must_fit(genotype, "NNI's DARTS space")
    content: dict[str, Any] = {}
    for cell in CELLS:
        for node, edges in DARTS.by_node(genotype.edges(cell)):
            for edge, (primitive, source) in enumerate(edges):
                content |= {f"{cell}/op_{node}_{edge}": primitive, f"{cell}/input_{node}_{edge}": [source]}
    return content


def from_nni(content: dict[str, Any]) -> Genotype:
    """Read the cells from a dictionary of NNI 2 or 3, which holds nothing else.

    Raises:
        InputError: a field is missing, unknown or wrong; it is named.
    """
    fields = dict(content)
    cells: dict[str, list[tuple[str, int]]] = {cell: [] for cell in CELLS}
    for cell in CELLS:
        for node in NODES:
            for edge in range(DARTS.edges_kept):
                primitive = _take(fields, f"{cell}/op_{node}_{edge}", KNOWN)
                key = f"{cell}/input_{node}_{edge}"
                source = fields.get(key)
                if type(source) is list and len(source) == 1:
                    fields[key] = source[0]
                cells[cell].append((primitive, _take(fields, key, range(node))))
    _must_be_empty(fields)
    return _genotype(cells)


def from_nni_1(content: dict[str, Any]) -> Genotype:
    """Read the cells from a dictionary of NNI 1, which holds nothing else.

    Raises:
        InputError: a field is missing, unknown or wrong; it is named.
    """
    fields = dict(content)
    cells: dict[str, list[tuple[str, int]]] = {cell: [] for cell in CELLS}
    for cell in CELLS:
        for node in NODES:
            prefix = f"{cell}_n{node}"
            names = [f"{prefix}_p{source}" for source in range(node)]
            kept = fields.pop(f"{prefix}_switch", None)
            if type(kept) is list and len(kept) == node and all(type(is_kept) is bool for is_kept in kept):
                kept = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
            if type(kept) is not list or len(kept) != DARTS.edges_kept:
                raise InputError(f"{prefix}_switch: must be two of {', '.join(names)}, got {kept!r:.40}.")
            for place, name in enumerate(kept):
                kept[place] = source = _one_of(f"{prefix}_switch", name, names)
                primitive = _one_of(names[source], fields.get(names[source]), NNI_1)
                cells[cell].append((KNOWN[primitive], source))
            for name in names:
                fields.pop(name, None)
    _must_be_empty(fields)
    return _genotype(cells)


def to_nasbench301(genotype: Genotype) -> dict[str, Any]:
    """Make the part of a configuration of NAS-Bench-301 that is about cells.

    Raises:
        InputError: the form cannot express the cells; the sentence says why.
    """
    _must_fit(genotype, "NAS-Bench-301's space")
    content: dict[str, Any] = {}
    for cell in CELLS:
        for node, edges in DARTS.by_node(genotype.edges(cell)):
            kept = sorted(edges, key=lambda edge: edge[1])
            if kept[0][1] == kept[1][1]:
                raise InputError(
                    f"{cell}: both edges of node {node} come from state {kept[0][1]}, "
                    "but NAS-Bench-301's space has only one edge from a state to a node."
                )
            for primitive, source in kept:
                content[f"{NASBENCH301_PREFIX}edge_{cell}_{FIRST_EDGE[node] + source}"] = primitive
            if node != NODES[0]:
                content[f"{NASBENCH301_PREFIX}inputs_node_{cell}_{node}"] = f"{kept[0][1]}_{kept[1][1]}"
    return content


def from_nasbench301(content: dict[str, Any]) -> Genotype:
    """Read the cells from such a dictionary, which holds nothing else; a node's edges are by rising source.

    Raises:
        InputError: a field is missing, unknown or wrong, or there is an edge that its node does not take.
    """
    fields = dict(content)
    cells: dict[str, list[tuple[str, int]]] = {cell: [] for cell in CELLS}
    for cell in CELLS:
        for node in NODES:
            pairs = {f"{one}_{two}": (one, two) for one, two in combinations(range(node), DARTS.edges_kept)}
            key = f"{NASBENCH301_PREFIX}inputs_node_{cell}_{node}"
            for source in pairs["0_1" if node == NODES[0] else _take(fields, key, tuple(pairs))]:
                edge = f"{NASBENCH301_PREFIX}edge_{cell}_{FIRST_EDGE[node] + source}"
                cells[cell].append((_take(fields, edge, KNOWN), source))
    _must_be_empty(fields)
    return _genotype(cells)


# Of each form: which keys are about cells, how these are read, and which others it is known to have.
_FORMS: list[tuple[re.Pattern, Callable[[dict[str, Any]], Genotype], re.Pattern]] = [
    (re.compile("(?:normal|reduce)/"), from_nni, re.compile("width|depth")),
    (re.compile(r"(?:normal|reduce)_n[0-9]"), from_nni_1, re.compile("")),
    (
        re.compile(f"{NASBENCH301_PREFIX}(?:edge|inputs_node)_"),
        from_nasbench301,
        re.compile(
            "(?:CreateImageDataLoader|ImageAugmentation|LossModuleSelectorIndices|OptimizerSelector"
            "|SimpleLearningrateSchedulerSelector|SimpleTrainNode):.*"
            f"|NetworkSelectorDatasetInfo:network|{NASBENCH301_PREFIX}(?:auxiliary|drop_path_prob|init_channels|layers)"
        ),
    ),
]


def cells_in(value: Any, name: str, line: int) -> Iterator[Found]:
    """Find the cells in a value at any depth: dictionaries, and texts of papers. Their names are their keys, with dots.

    Args:
        value: any JSON, or what a Python dictionary holds.
        name: name of the value.
        line: line in which it stands.
    """
    rest = [(name, value)]
    while rest:
        name, value = rest.pop()
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            if isinstance(value, Fields) or _is_of_fields(value) or _forms_of(value):
                yield Found(name, line, value)
            else:
                inner = list(value.items())
        elif isinstance(value, list):
            inner = list(enumerate(value))
        elif isinstance(value, str) and "Genotype" in value:
            texts = [item for item in find_all(value) if item.problem or isinstance(item.value, Fields)]
            yield from (Found(name, line, item.value, item.problem, item.is_code) for item in texts)
        rest += [(f"{name[:100]}.{key!s:.100}".lstrip("."), item) for key, item in reversed(inner)]


def genotype_of(content: dict[str, Any]) -> tuple[Genotype, list[str]]:
    """Read the cells from one of these dictionaries, and list the names of its fields that the form does not have.

    Raises:
        InputError: a field is missing, unknown or wrong; it is named.
    """
    forms = _forms_of(content)
    if not forms:
        fields, further = fields_of(content)
        try:
            return Genotype(**fields), further
        except ValidationError as error:
            raise InputError(first_problem(error)) from None
    if len(forms) > 1:
        raise InputError("keys of more than one form.")
    ((cell_key, read, known),) = forms
    cells = {key: value for key, value in content.items() if isinstance(key, str) and cell_key.match(key)}
    return read(cells), [str(key) for key in content if key not in cells and not known.fullmatch(str(key))]


def _is_of_fields(content: dict) -> bool:
    """Say whether it is a `Genotype(…)` that was made a dictionary."""
    names = {OTHER_NAMES.get(key, key) for key in content}
    return {"normal", "reduce"} <= names and isinstance(content["normal"], list) and len(names & set(FIELDS)) > 2


def _forms_of(content: dict) -> list[tuple]:
    return [form for form in _FORMS if any(isinstance(key, str) and form[0].match(key) for key in content)]


def _must_fit(genotype: Genotype, space: str) -> None:
    if genotype.space != DARTS:
        raise InputError(f"a cell of {genotype.space.name}, which {space} does not have.")
    for cell in CELLS:
        edges, concat = genotype.edges(cell), genotype.concat(cell)
        if (num_nodes := len(DARTS.by_node(edges))) != len(NODES):
            raise InputError(f"{cell}: {count(num_nodes, 'node')}, but cells of {space} have {len(NODES)}.")
        for primitive, _ in edges:
            if primitive not in KNOWN:
                raise InputError(f"{cell}: {primitive}, which {space} does not have.")
        if concat != tuple(NODES):
            raise InputError(f"{cell}_concat: {list(concat)}, but cells of {space} concatenate all nodes.")


def _take(fields: dict[str, Any], key: str, allowed: Any) -> Any:
    """Remove a field and return its value, which must be among those allowed, and of their type."""
    if key not in fields:
        raise InputError(f"{key}: missing.")
    value = fields.pop(key)
    if type(value) is not type(allowed[0]) or value not in allowed:
        raise InputError(f"{key}: must be one of {', '.join(map(str, allowed))}, got {value!r:.40}.")
    return value


def _one_of(key: str, value: Any, names: Sequence[str]) -> int:
    """Find the name that a value means: the name itself, its number, or one boolean for each name, one of them true."""
    if type(value) is list and len(value) == len(names) and value.count(True) == 1 and set(map(type, value)) == {bool}:
        return value.index(True)
    if type(value) is int and value in range(len(names)):
        return value
    if value not in names:
        raise InputError(f"{key}: must be one of {', '.join(names)}, got {value!r:.40}.")
    return names.index(value)


def _must_be_empty(fields: dict[str, Any]) -> None:
    for key in fields:
        raise InputError(f"{key!r:.80}: unknown field, or an edge that its node does not take.")


def _genotype(cells: dict[str, list[tuple[str, int]]]) -> Genotype:
    return Genotype(
        normal=tuple(cells["normal"]),
        normal_concat=tuple(NODES),
        reduce=tuple(cells["reduce"]),
        reduce_concat=tuple(NODES),
    )
