"""Cells in the forms of other libraries: there and back, and what each form refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.search_space.conversions import NNI_1, to_nasbench301, to_nni
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Provenance
from nas.search_space.reader import read
from tests.damaged_json import damaged, genotype_or_sentence

V1, V2, NASNET = map(Genotype.load, ("DARTS_V1", "DARTS_V2", "NASNet"))
NB301 = "NetworkSelectorDatasetInfo:darts:"
FORMS = {"text": Genotype.to_text, "nni": lambda genotype: json.dumps(to_nni(genotype))}
FORMS["nasbench301"] = lambda genotype: json.dumps(to_nasbench301(genotype))
SPACES = {"nni": "NNI's DARTS space", "nasbench301": "NAS-Bench-301's space"}


def sorted_by_source(genotype):
    """The same cells, the edges of a node by source."""
    fields = genotype.model_dump()
    for cell in ("normal", "reduce"):
        pairs = zip(fields[cell][::2], fields[cell][1::2], strict=True)
        fields[cell] = [edge for pair in pairs for edge in sorted(pair, key=lambda edge: edge[1])]
    return Genotype(**fields)


def test_nni_writes_what_it_publishes_for_darts_v2():
    """The keys and values of `load_searched_model("darts-v2")`, in which the order of a node's edges is that of V2."""
    content = to_nni(V2)
    for cell, sources in (("normal", [0, 1, 0, 1, 1, 0, 0, 2]), ("reduce", [0, 1, 2, 1, 0, 2, 2, 1])):
        edges = [f"{node}_{edge}" for node in (2, 3, 4, 5) for edge in (0, 1)]
        assert [content.pop(f"{cell}/input_{edge}") for edge in edges] == [[source] for source in sources]
    kept = [content[f"normal/op_{edge}"] for edge in ("4_1", "5_0", "5_1")]
    assert kept == ["skip_connect", "skip_connect", "dil_conv_3x3"]
    assert set(content.values()) == {"sep_conv_3x3", "skip_connect", "dil_conv_3x3", "max_pool_3x3"}
    assert len(content) == 16


def nni_1(genotype, switch, operation):
    """The dictionary of NNI 1; `switch` writes the kept sources of so many, `operation` the number of a primitive."""
    content = {}
    for cell in ("normal", "reduce"):
        edges = getattr(genotype, cell)
        for node, pair in enumerate(zip(edges[::2], edges[1::2], strict=True), 2):
            kept = {source: DARTS.primitives.index(primitive) - 1 for primitive, source in pair}
            prefix = f"{cell}_n{node}"
            content |= {f"{prefix}_p{p}": operation(kept[p]) if p in kept else [] for p in range(node)}
            content[f"{prefix}_switch"] = switch(prefix, list(kept), node)
    return content


def one_hot(number):
    return [number == other for other in range(7)]


def names(prefix, kept, num_sources):
    return [f"{prefix}_p{source}" for source in kept]


@pytest.mark.parametrize("switch", [names, lambda _, kept, n: kept, lambda _, kept, n: [s in kept for s in range(n)]])
@pytest.mark.parametrize("operation", [lambda number: NNI_1[number], lambda number: number, one_hot])
def test_nni_1_wrote_names_numbers_or_booleans(switch, operation):
    found = read(json.dumps(nni_1(V2, switch, operation)))
    assert sorted_by_source(found.genotype) == sorted_by_source(V2)
    assert found.notes == []


def test_a_configuration_of_nasbench301():
    """That of results_0.json in automl/nasbench301, nasbench301/surrogate_models/test/results_fidelity_0."""
    edges = {
        "normal": {0: "skip_connect", 1: "sep_conv_3x3", 2: "sep_conv_3x3", 3: "skip_connect"}
        | {5: "dil_conv_3x3", 7: "dil_conv_5x5", 10: "sep_conv_3x3", 11: "skip_connect"},
        "reduce": {0: "max_pool_3x3", 1: "avg_pool_3x3", 2: "skip_connect", 3: "dil_conv_5x5"}
        | {6: "sep_conv_3x3", 7: "sep_conv_5x5", 11: "sep_conv_3x3", 12: "dil_conv_3x3"},
    }
    inputs = {"normal": {3: "0_1", 4: "0_2", 5: "1_2"}, "reduce": {3: "0_1", 4: "1_2", 5: "2_3"}}
    content = {f"{NB301}edge_{cell}_{i}": kind for cell in edges for i, kind in edges[cell].items()}
    content |= {f"{NB301}inputs_node_{cell}_{node}": pair for cell in inputs for node, pair in inputs[cell].items()}
    training = [f"{NB301}{name}" for name in ("auxiliary", "drop_path_prob", "init_channels", "layers")]
    training += ["CreateImageDataLoader:batch_size", "ImageAugmentation:cutout", "NetworkSelectorDatasetInfo:network"]
    training += ["LossModuleSelectorIndices:loss_module", "OptimizerSelector:sgd:weight_decay"]
    training += ["SimpleLearningrateSchedulerSelector:cosine_annealing:T_max", "SimpleTrainNode:mixup:alpha"]
    found = read(json.dumps(content | dict.fromkeys(training, 0.2)))
    assert found.notes == []
    sources = {cell: [source for _, source in getattr(found.genotype, cell)] for cell in edges}
    assert sources == {"normal": [0, 1, 0, 1, 0, 2, 1, 2], "reduce": [0, 1, 0, 1, 1, 2, 2, 3]}
    assert to_nasbench301(found.genotype) == content


TWICE = "both edges of node {} come from state {}, but {{}} has only one edge from a state to a node."


@pytest.mark.parametrize(
    ("field", "value", "refused_by", "expected"),
    [
        ("reduce", (("sep_conv_7x7", 0), *V1.reduce[1:]), SPACES, "sep_conv_7x7, which {} does not have."),
        ("normal_concat", (3, 4, 5), SPACES, "[3, 4, 5], but cells of {} concatenate all nodes."),
        ("reduce", (*V1.reduce[:4], *2 * [V1.normal[7]], *V1.reduce[6:]), ["nasbench301"], TWICE.format(4, 2)),
        ("normal", (*2 * [V1.normal[1]], *V1.normal[2:]), ["nasbench301"], TWICE.format(2, 0)),
        ("normal", NASNET.normal, SPACES, "5 nodes, but cells of {} have 4."),
    ],
)
def test_what_a_form_cannot_express_is_an_error(field, value, refused_by, expected):
    genotype = Genotype(**{**V1.model_dump(), field: value})
    for form, space in SPACES.items():
        if form not in refused_by:
            assert read(FORMS[form](genotype)).genotype == genotype
            continue
        with pytest.raises(InputError) as caught:
            FORMS[form](genotype)
        assert str(caught.value) == f"{field}: {expected.format(space)}"


@pytest.mark.parametrize(
    ("form", "key", "value", "expected"),
    [
        ("nni", "normal/op_2_0", ..., "normal/op_2_0: missing."),
        ("nni", "normal/op_2_0", "none", "normal/op_2_0: must be one of max_pool_3x3, avg"),
        ("nni", "normal/input_2_1", [2], "normal/input_2_1: must be one of 0, 1, got 2."),
        ("nni", "normal/input_2_1", -1, "normal/input_2_1: must be one of 0, 1, got -1."),
        ("nni", "normal/input_2_1", True, "normal/input_2_1: must be one of 0, 1, got True."),
        ("nni", "normal/input_2_1", [0, 1], "normal/input_2_1: must be one of 0, 1, got [0, 1]."),
        ("nni", "normal/op_6_0", "skip_connect", "'normal/op_6_0': unknown field"),
        ("nni", f"{NB301}edge_normal_0", "skip_connect", "keys of more than one form."),
        ("nni_1", "normal_n2_switch", ..., "normal_n2_switch: must be two of normal_n2_p0, normal_n2_p1, got None."),
        ("nni_1", "normal_n2_switch", [0], "normal_n2_switch: must be two of"),
        ("nni_1", "normal_n3_switch", [True, True, True], "normal_n3_switch: must be two of"),
        ("nni_1", "normal_n2_switch", [0, 2], "normal_n2_switch: must be one of normal_n2_p0, normal_n2_p1, got 2."),
        ("nni_1", "normal_n2_switch", ["normal_n3_p0", 1], "normal_n2_switch: must be one of"),
        ("nni_1", "normal_n2_p0", ..., "normal_n2_p0: must be one of maxpool, avgpool"),
        ("nni_1", "normal_n2_p0", True, "normal_n2_p0: must be one of"),
        ("nni_1", "normal_n2_p0", [True] * 7, "normal_n2_p0: must be one of"),
        ("nni_1", "normal_n2_p2", "maxpool", "'normal_n2_p2': unknown field"),
        ("nasbench301", f"{NB301}edge_normal_0", ..., f"{NB301}edge_normal_0: missing."),
        ("nasbench301", f"{NB301}inputs_node_normal_4", ..., f"{NB301}inputs_node_normal_4: missing."),
        ("nasbench301", f"{NB301}inputs_node_normal_3", "1_0", f"{NB301}inputs_node_normal_3: must be one of 0_1"),
        ("nasbench301", f"{NB301}inputs_node_normal_2", "0_1", f"'{NB301}inputs_node_normal_2': unknown field"),
        ("nasbench301", f"{NB301}edge_normal_0", "none", f"{NB301}edge_normal_0: must be one of max_pool_3x3"),
        ("nasbench301", f"{NB301}edge_" + "x" * 9999, 1, f"'{NB301}edge_xxx"),
        ("nasbench301", f"{NB301}edge_\n", 1, rf"'{NB301}edge_\n': unknown field"),
    ],
    ids=lambda value: f"{value!s:.40}",
)  # fmt: skip
def test_a_bad_field_is_named(form, key, value, expected):
    content = nni_1(V1, names, one_hot) if form == "nni_1" else json.loads(FORMS[form](V1))
    if value is ...:
        del content[key]
    else:
        content[key] = value
    for written in (json.dumps(content), repr(content)):
        with pytest.raises(InputError) as caught:
            read(written)
        text = str(caught.value)
        assert text.startswith(f"genotype text: {expected}")
        assert text.isprintable()
        assert len(text) < 300


CELL = st.tuples(
    *(st.tuples(st.sampled_from(DARTS.primitives[1:]), st.integers(0, 1 + index // 2)) for index in range(8))
)


@given(normal=CELL, reduce=CELL)
def test_any_cells_there_and_back(normal, reduce):
    genotype = Genotype(normal=normal, normal_concat=range(2, 6), reduce=reduce, reduce_concat=range(2, 6))
    for form in ("text", "nni"):
        back = read(FORMS[form](genotype))
        assert (back.genotype, back.file.provenance, back.notes) == (genotype, Provenance(), [])
    if any(cell[i][1] == cell[i + 1][1] for cell in (normal, reduce) for i in range(0, 8, 2)):
        with pytest.raises(InputError, match="both edges of node"):
            to_nasbench301(genotype)
    else:
        assert read(FORMS["nasbench301"](genotype)).genotype == sorted_by_source(genotype)


GOOD = st.sampled_from([to_nni(V1), nni_1(V1, names, one_hot), to_nasbench301(V1), V1.model_dump(mode="json")])
DAMAGED = GOOD.flatmap(lambda content: damaged(content, ("width", "normal/op_6_0")))


@pytest.mark.fuzz
@given(content=DAMAGED, write=st.sampled_from([json.dumps, repr]))
def test_made_up_input_is_refused_or_is_a_genotype(content, write):
    genotype_or_sentence(lambda text: read(text).genotype, write(content))
