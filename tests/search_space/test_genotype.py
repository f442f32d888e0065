import ast
import copy
import json
import math
import os
import re
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nas.errors import InputError
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile, Provenance, known_names
from tests.damaged_json import damaged, spliced

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "genotypes").glob("*.json"))
PUBLISHED = ROOT.parent / "shared" / "published-genotypes.json"

V1 = Genotype.load(ROOT / "genotypes" / "DARTS_V1.json")
V2 = Genotype.load(ROOT / "genotypes" / "DARTS_V2.json")
CONTENT = json.loads((ROOT / "genotypes" / "DARTS_V1.json").read_text(encoding="utf-8"))


# Deriving


def paper_rank(rows):
    return rows.softmax(-1)[:, 1:].amax(-1)


def derive_cell(alphas, rank=paper_rank):
    """One cell by a rule that ranks a node's edges."""
    genes, node = [], 2
    while len(alphas):
        rows, alphas = alphas[:node], alphas[node:]
        for source in rank(rows).argsort(descending=True, stable=True)[:2].tolist():
            genes.append((DARTS.primitives[1 + rows[source, 1:].argmax()], source))
        node += 1
    return tuple(genes)


def derive(normal, reduce=None):
    return Genotype.derive(SimpleNamespace(normal=normal, reduce=normal if reduce is None else reduce))


@settings(max_examples=100, deadline=None)
@given(
    num_nodes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    scale=st.sampled_from([1e-3, 1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_derive_agrees_with_an_independent_rule(num_nodes, scale, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    normal, reduce = (scale * torch.randn(n * (n + 3) // 2, 8, generator=generator, dtype=dtype) for n in num_nodes)
    genotype = derive(torch.nn.Parameter(normal), torch.nn.Parameter(reduce))
    assert genotype.normal == derive_cell(normal.double())
    assert genotype.reduce == derive_cell(reduce.double())
    assert genotype.normal_concat == tuple(range(2, 2 + num_nodes[0]))
    assert genotype.reduce_concat == tuple(range(2, 2 + num_nodes[1]))


@pytest.mark.parametrize(
    ("decoy", "wrong_rank"),
    [
        pytest.param([4.0] * 8, lambda rows: rows[:, 1:].amax(-1), id="raw alphas"),
        pytest.param([9.0, 5.0, *[0.0] * 6], lambda rows: rows[:, 1:].softmax(-1).amax(-1), id="softmax without none"),
        pytest.param([9.0, *[0.0] * 7], lambda rows: rows.softmax(-1).amax(-1), id="none ranks edges"),
    ],
)
def test_derive_does_not_follow_another_rule(decoy, wrong_rank):
    """The decoy is the edge from state 0 to the second node: it leads by the wrong rule, and is last by the paper's."""
    alphas = torch.zeros(5, 8, dtype=torch.float64)
    alphas[2] = torch.tensor(decoy)
    alphas[3, DARTS.primitives.index("sep_conv_3x3")] = 3.0
    alphas[4, DARTS.primitives.index("dil_conv_3x3")] = 2.5
    assert derive(alphas).normal[2:] == (("sep_conv_3x3", 1), ("dil_conv_3x3", 2))
    assert (DARTS.primitives[1], 0) in derive_cell(alphas, wrong_rank)[2:]


def test_of_equal_weights_the_first_edge_and_primitive_win():
    assert derive(torch.zeros(14, 8)).normal == (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 4
    alphas = torch.zeros(2, 8)
    alphas[:, 4] = alphas[:, 6] = 1.0
    assert derive(alphas).normal == (("sep_conv_3x3", 0), ("sep_conv_3x3", 1))


@settings(max_examples=50, deadline=None)
@given(row=st.lists(st.floats(-5, 5), min_size=8, max_size=8), data=st.data())
def test_of_edges_with_the_same_alphas_in_another_order_the_first_win(row, data):
    """Their weights are equal, so the rounding of a sum must not decide."""
    assume(max(row[1:]) > row[0])
    rows = [[row[0], *data.draw(st.permutations(row[1:]))] for _ in range(5)]
    assert [source for _, source in derive(torch.tensor(rows, dtype=torch.float64)).normal[2:]] == [0, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_derive_refuses_alphas_that_are_not_finite(value):
    bad = torch.zeros(14, 8)
    bad[13, 0] = value
    with pytest.raises(ValueError, match=r"reduce cell.*finite"):
        derive(torch.zeros(14, 8), bad)


@pytest.mark.parametrize("shape", [(13, 8), (14, 7), (14, 9), (0, 8), (14, 0), (8, 14), (14,), (), (14, 8, 1)], ids=str)
def test_derive_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"reduce cell.*shape"):
        derive(torch.zeros(14, 8), torch.zeros(shape))


# The value


def test_equal_by_value_hashable_and_immutable():
    lists = json.loads(json.dumps(V1.model_dump()))
    same = Genotype(**{**lists, "normal_concat": range(2, 6)})
    assert same == V1 != V2
    assert {same, V1, V2} == {V1, V2}
    assert {type(same.normal), type(same.normal[0]), type(same.normal_concat)} == {tuple}
    for field in ("normal", "reduce_concat"):
        with pytest.raises(ValidationError):
            setattr(same, field, getattr(V2, field))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normal", V1.normal[:7]),
        ("normal", (("none", 0), ("skip_connect", 1))),
        ("reduce", (("skip_connect", 0), ("skip_connect", 2))),
        ("reduce", (("skip_connect", 0), ("skip_connect", True))),
        ("reduce_concat", range(2, 7)),
        ("reduce_concat", "2345"),
        ("depth", 3),
    ],
)
def test_the_constructor_refuses_what_is_no_cell(field, value):
    with pytest.raises(ValueError, match=field):
        Genotype(**{**V1.model_dump(), field: value})


# Files and texts that are right


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cells_of_the_repository_survive_file_and_text(path, tmp_path):
    genotype, provenance = Genotype.load(path), GenotypeFile.load(path).provenance
    genotype.save(tmp_path / "copy.json", provenance)
    assert Genotype.load(tmp_path / "copy.json") == genotype
    assert GenotypeFile.load(tmp_path / "copy.json").provenance == provenance
    assert Genotype.from_text(genotype.to_text()) == genotype
    assert Genotype.from_text(f"FOUND_1 = {genotype.to_text()}\n") == genotype


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the list of published cells is not on this machine")
def test_published_cells_are_what_was_published():
    for published in json.loads(PUBLISHED.read_text(encoding="utf-8")):
        name = published.pop("name")
        genotype = Genotype.load(ROOT / "genotypes" / f"{name}.json")
        assert genotype == Genotype(**{field: published.pop(field) for field in V1.model_dump()}), name
        provenance = GenotypeFile.load(ROOT / "genotypes" / f"{name}.json").provenance
        known = {field: value for field, value in published.items() if value is not None}
        assert provenance.model_dump(exclude_none=True) == known, name


def test_text_as_published_and_as_formatters_leave_it():
    published = """
DARTS_V1 = Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1),
  ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5],
  reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0),
  ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])
"""
    assert Genotype.from_text(published) == V1
    formatted = published.replace("'", '"').replace("[(", "[\n    (").replace(")]", "),\n]").replace("5])", "5],\n)")
    assert Genotype.from_text(formatted.replace("), ", "),\n    ")) == V1
    assert Genotype.from_text(V1.to_text().replace("range(2, 6)", "list(range(2, 6))")) == V1
    assert Genotype.from_text(V1.to_text().replace("range(2, 6)", "(2, 3, 4, 5)")) == V1
    assert Genotype.from_text(published.replace("('", "['").replace("),", "],").replace(")]", "]]")) == V1
    assert Genotype.from_text(f"# found by hand\n{published}  # Genotype(…)\nDARTS = DARTS_V1") == V1


@pytest.mark.parametrize("text", ["3.00 ± 0.14", "seeds [1,  2]", "[", "a ]  b", "{ [  ] }", 'say "[ x  y ]"\n'])
def test_provenance_is_kept_to_the_letter(text, tmp_path):
    provenance = Provenance(method=text, source="[", versions={"torch": text})
    V1.save(tmp_path / "cell.json", provenance)
    assert GenotypeFile.load(tmp_path / "cell.json").provenance == provenance


def test_save_replaces_the_file_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "new" / "cell.json"
    V1.save(path)
    replaced = []

    def replace(aside, target, do=os.replace):
        assert Genotype.load(target) == V1, "the old file stands"
        assert Genotype.load(aside) == V2, "the new one is whole"
        assert Path(aside).parent == Path(target).parent, "a rename is atomic within one file system only"
        replaced.append(do(aside, target))

    monkeypatch.setattr(os, "replace", replace)
    V2.save(path)
    assert len(replaced) == 1
    assert Genotype.load(path) == V2
    assert list(path.parent.iterdir()) == [path]


# Names


def test_a_name_means_the_folder_here_then_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Genotype.load("DARTS_V1") == V1
    V2.save("genotypes/DARTS_V1.json")
    V2.save("genotypes/mine.v2.json")
    assert Genotype.load("DARTS_V1") == Genotype.load("mine.v2") == V2
    assert {"DARTS_V1", "DARTS_V2", "mine.v2"} <= set(known_names())
    V1.save("mine.v2")
    assert Genotype.load("mine.v2") == V1, "a path that exists is that path"


@pytest.mark.parametrize("name", ["DARTS_V3", "DARTS_V1.json", "elsewhere/DARTS_V1", "a\0b", "n" * 5000])
def test_what_is_neither_path_nor_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = sentence(Genotype.load, name)
    assert name[:50] in text
    if len(name) < 5000:
        assert re.search("known names: .*DARTS_V2.*PC_DARTS_cifar", text)
    else:
        assert re.search("too long", text[:300])


# Files and texts that are wrong


def sentence(load, argument):
    with pytest.raises(InputError) as caught:
        load(argument)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.endswith(".")
    return text


def refusal(path, data):
    """The sentence about a file of these bytes or this content, less the file's name."""
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    text = sentence(Genotype.load, path)
    assert text.startswith(f"genotype {path}: ")
    text = text.removeprefix(f"genotype {path}: ")
    assert len(text) < 300
    return text


def changed(place, value):
    """The content of a good file with one value changed, added (at a new key), or left out (`...`)."""
    content = copy.deepcopy(CONTENT)
    *parents, last = place.split("/")
    item = content
    for key in parents:
        item = item[int(key) if isinstance(item, list) else key]
    last = int(last) if isinstance(item, list) else last
    if value is ...:
        del item[last]
    else:
        item[last] = value
    return content


BAD_FIELDS = [
    ("normal/edges/3/0", "sep_conv_9x9", r"normal\.edges\[3\]\[0\]: unknown primitive 'sep_conv_9x9'; known: max"),
    ("normal/edges/3/0", "none", r"normal\.edges\[3\]\[0\]: unknown primitive 'none'"),
    ("normal/edges/3/0", "a\nb" * 999, r"normal\.edges\[3\]\[0\]: unknown primitive 'a\\nb"),
    ("reduce/edges/2/1", 3, r"reduce\.edges\[2\]: skip_connect comes from state 3, but node 3 "),
    ("reduce/edges/2/1", 10**3000, r"reduce\.edges\[2\]"),
    ("reduce/edges/2/1", -1, r"reduce\.edges\[2\]\[1\]: .*-1"),
    ("reduce/edges/7", ..., r"reduce\.edges: 7 edges, but a cell has 1 to 32 nodes with 2 edges each"),
    ("reduce/edges", [], r"reduce\.edges: 0 edges"),
    ("reduce/edges", CONTENT["reduce"]["edges"] * 9, r"reduce\.edges: 72 edges"),
    ("reduce/edges/0", ["skip_connect"], r"reduce\.edges\[0\]\[1\]: missing"),
    ("reduce/edges/0", ["skip_connect", 0, 1], r"reduce\.edges\[0\]: "),
    ("depth", 4, r"depth: unknown field"),
    ("normal/depth", 4, r"normal\.depth: unknown field"),
    ("provenance/depth", 4, r"provenance\.depth: unknown field"),
    ("two\nlines", 4, r".*two.*lines.*unknown field"),
    ("provenance/versions", {"\x1b[2J\r": 4}, r"provenance\.versions.*string"),
    ("l" * 10_000, 4, r".*lll.*unknown field"),
    ("format_version", 2, r"format_version is 2.*newer"),
    ("format_version", 10**3000, r"format_version is 1.*newer"),
    ("format_version", ..., r"format_version: missing"),
    ("normal", ..., r"normal: missing"),
    ("normal/edges", ..., r"normal\.edges: missing"),
    ("reduce/concat", ..., r"reduce\.concat: missing"),
    ("format_version", "1", r"format_version: .*'1'"),
    ("format_version", 0, r"format_version: .*0"),
    ("format_version", True, r"format_version: .*True"),
    ("format_version", 1.0, r"format_version: .*1\.0"),
    ("normal", [], r"normal: .*\[\]"),
    ("normal/edges", "skip_connect", r"normal\.edges: .*'skip_connect'"),
    ("normal/edges/3", None, r"normal\.edges\[3\]: .*None"),
    ("normal/edges/3/0", 3, r"normal\.edges\[3\]\[0\]: .*string.*3"),
    ("normal/edges/3/1", "1", r"normal\.edges\[3\]\[1\]: .*integer.*'1'"),
    ("normal/edges/3/1", True, r"normal\.edges\[3\]\[1\]: .*integer.*True"),
    ("normal/edges/3/1", 1.0, r"normal\.edges\[3\]\[1\]: .*integer.*1\.0"),
    ("reduce/concat/0", "2", r"reduce\.concat\[0\]: .*integer.*'2'"),
    ("provenance/num_images", True, r"provenance\.num_images: .*integer.*True"),
    ("provenance/num_images", 5.5, r"provenance\.num_images: .*integer.*5\.5"),
    ("provenance/method", 5, r"provenance\.method: .*string.*5"),
    ("provenance/supernet_accuracy", "0.9", r"provenance\.supernet_accuracy: .*number.*'0\.9'"),
    ("provenance/supernet_accuracy", math.nan, r".*(NaN|provenance\.supernet_accuracy)"),
    ("provenance", None, r"provenance: .*None"),
    ("reduce/concat", [], r"reduce\.concat: \[\], but .* 2 to 5, rising"),
    ("reduce/concat", [3, 2], r"reduce\.concat: \[3, 2\]"),
    ("reduce/concat", [2, 2], r"reduce\.concat: \[2, 2\]"),
    ("reduce/concat", [1, 2], r"reduce\.concat: \[1, 2\]"),
    ("reduce/concat", [5, 6], r"reduce\.concat: \[5, 6\]"),
    ("reduce/concat", list(range(2, 9999)), r"reduce\.concat: \[2, 3"),
]


@pytest.mark.parametrize(
    ("place", "value", "expected"), BAD_FIELDS, ids=[f"{place!r:.30}={value!r:.30}" for place, value, _ in BAD_FIELDS]
)
def test_a_bad_field_is_named(place, value, expected, tmp_path):
    assert re.match(expected, refusal(tmp_path / "bad.json", changed(place, value)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not JSON .*line 1"),
        (b"Genotype(normal=[])", "not JSON .*line 1"),
        (json.dumps(CONTENT).encode()[:-1], "not JSON .*line 1"),
        (json.dumps(CONTENT).encode().replace(b"DARTS", b"D\xff"), "not JSON .*utf-8"),
        (b"\x80\x04\x95", "not JSON .*utf-8"),
        (b"[" * 100_000, "not JSON .*recursion"),
        (b'{"normal":' * 100_000, "not JSON .*recursion"),
        (b"[" * 500 + b"]" * 500, ".*recursion"),  # within what Python's parser takes
        (b"1" * 5000, "not JSON .*digits"),
        (b"null", "content: .*None"),
        (b"[1]", r"content: .*\[1\]"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_file_that_is_not_json_or_no_object(data, expected, tmp_path):
    assert re.match(expected, refusal(tmp_path / "bad.json", data))


def test_a_directory_is_no_genotype(tmp_path):
    assert sentence(Genotype.load, tmp_path) == f"genotype {tmp_path}: not a regular file."


def test_a_huge_file_is_refused_without_being_read(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    start = time.perf_counter()
    text = sentence(Genotype.load, path)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert text.startswith(f"genotype {path}: larger than 1 MiB")
    assert peak < 8 << 20
    assert seconds < 2


TEXT = V1.to_text()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Genotype", "Phenotype", "there is no Genotype"),
        ("Genotype(", "Genotype(*", "line 1: .*invalid syntax"),
        ("Genotype(", "Genotype(*range(2, 6), ", "line 1: .*follows keyword|names or calls"),
        (", reduce_concat=range(2, 6)", "", "reduce_concat: missing"),
        ("reduce=", "normal=", "'normal' is given twice"),
        ("reduce=", "reduction=[], reduce=", "reduce is given twice"),
        ("reduce=", "depth=3, reduce=", "depth: unknown field"),
        ("'skip_connect', 0", "'none', 0", r"normal\[2\]\[0\]: unknown primitive 'none'"),
        ("'sep_conv_3x3', 1", "'sep_conv_3x3', 2", r"normal\[0\]: sep_conv_3x3 comes from state 2"),
        ("('sep_conv_3x3', 1), ", "", "normal: 7 edges"),
        ("range(2, 6)", "range(2, 7)", r"normal_concat: \[2, 3, 4, 5, 6\]"),
        ("range(2, 6)", "range(6, 2)", r"normal_concat: \[\]"),
        ("range(2, 6)", "range(0, 9999)", r"normal_concat: \[0, 1"),
        ("range(2, 6)", "range(2, 10**9)", "names or calls"),
        ("range(2, 6)", "range(2, 99999)", r"range of \[2, 99999\]"),
        ("range(2, 6)", "range()", r"range of \[\]"),
        ("range(2, 6)", "range(2, 6, 0)", "must not be zero"),
        ("range(2, 6)", "[2, 3, 4, 5.0]", r"normal_concat\[3\]: .*5\.0"),
        ("range(2, 6)", "[2, 3, 4, 5)", "does not match"),
        ("range(2, 6)", "[2 3 4 5]", "line 1: .*, at .2 3 4 5"),
        ("range(2, 6)", "concat", "names or calls where values are expected"),
        ("range(2, 6)", "sorted([2, 3, 4, 5])", "names or calls"),
        ("range(2, 6)", "[2, 3, 4, 5][::-1]", "names or calls"),
        ("range(2, 6)", "f'{concat}'", "names or calls"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1]", "does not match"),
        ("'sep_conv_3x3'", "'sep_conv_3x3\"", "line 1: unterminated string"),
        ("'sep_conv_3x3', 1", "'sep_conv_3x3', -1", r"normal\[0\]\[1\]: .*-1"),
        ("'sep_conv_3x3', 1", "'sep_conv_3x3', ١", "invalid character"),
        ("'sep_conv_3x3', 1", "'sep_conv_3x3', 1, 2", r"normal\[0\]: "),
        ("('sep_conv_3x3', 1)", "[('sep_conv_3x3', 1)]", r"normal\[0\]\[0\]: "),
        ("range(2, 6))", "range(2, 6))._replace(normal=[])", "names or calls"),
        ("range(2, 6))", "range(2, 6)", "cut off"),
        ("range(2, 6))", "range(2, 6)), Genotype(normal=['a'])", "2 genotypes"),
        ("range(2, 6))", "range(2, 6), *'ab')", "names or calls|follows"),
        ("range(2, 6))", "range(2, 6), **{'aux': 1})", "names or calls"),
        (TEXT, "", "there is no Genotype"),
        (TEXT, "DARTS_V1", "there is no Genotype"),
        ("Genotype(", "Genotype(" + " " * (1 << 20), "longer than"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_a_bad_text_is_explained(old, new, expected):
    assert old in TEXT
    before, after = TEXT.rsplit(old, 1) if old.endswith("))") else TEXT.split(old, 1)
    text = sentence(Genotype.from_text, before + new + after)
    assert text.startswith("genotype text")
    assert re.search(expected, text)
    assert text.isprintable()
    assert len(text) < 300


# Anything at all


def outcome(load, argument):
    try:
        return load(argument)
    except InputError as error:
        return str(error)


def check(result):
    """Either a sentence or two cells."""
    if isinstance(result, str):
        assert len(result.splitlines()) == 1
        return
    for edges, concat in ((result.normal, result.normal_concat), (result.reduce, result.reduce_concat)):
        num_nodes, odd = divmod(len(edges), 2)
        assert num_nodes > 0 == odd
        assert {primitive for primitive, _ in edges} <= set(DARTS.known_primitives)
        assert all(type(source) is int and source in range(2 + index // 2) for index, (_, source) in enumerate(edges))
        assert {type(node) for node in concat} == {int}
        assert set(concat) <= set(range(2, 2 + num_nodes))
        assert list(concat) == sorted(set(concat))
    assert Genotype.from_text(result.to_text()) == result


WORDS = (*DARTS.primitives, "range(2, 6)", "normal", "concat", "1e9")


def nudged(value):
    """Likely another cell."""
    return st.sampled_from(DARTS.primitives) if isinstance(value, str) else st.integers(0, 6)


@pytest.mark.fuzz
@given(text=damaged(CONTENT, WORDS, nudged).map(json.dumps) | spliced(json.dumps(CONTENT), WORDS))
def test_any_file_gives_a_genotype_or_a_sentence(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(text, encoding="utf-8")
    check(outcome(Genotype.load, path))


# Nothing is run


PAYLOAD = "__import__('os').system('touch x')"


def test_a_text_is_never_run(tmp_path, monkeypatch):
    """A call of the shell is put before, after and in place of every word, string and sign of a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("the text was run"))
    for token in re.finditer(r"'\w+'|\w+|[^\s\w]", TEXT):
        for start, end in ((token.start(), token.start()), (token.end(), token.end()), token.span()):
            check(outcome(Genotype.from_text, TEXT[:start] + PAYLOAD + TEXT[end:]))
    for place in ("format_version", "normal", "normal/edges/0/0", "normal/edges/0/1", "reduce/concat/0"):
        sentence(Genotype.load, write(tmp_path / "bad.json", changed(place, PAYLOAD)))
    sentence(Genotype.load, PAYLOAD)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


RUNS = re.compile(
    r"eval|exec|compile|__import__|torch\.(jit\.|hub\.)?load|allow_pickle=(?!False$).*|from torch import .*\bload\b.*"
    r"|(import|from) .*\b(_?pickle|marshal|shelve|dill|cloudpickle|joblib|builtins)\b.*"
)


def what_runs_input(source):
    """The parts of a module that could run what they read."""
    kinds = ast.Name | ast.Attribute | ast.Import | ast.ImportFrom | ast.keyword
    parts = (ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return [part for part in parts if RUNS.fullmatch(part)]


@pytest.mark.parametrize("path", [*sorted((ROOT / "nas").rglob("*.py")), ROOT / "search.py", ROOT / "train_final.py"],
                         ids=lambda path: path.name)  # fmt: skip
def test_nothing_in_the_repository_runs_what_it_reads(path):
    if not path.exists():
        pytest.skip(f"there is no {path.name}")
    assert what_runs_input(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "runs"),
    [
        *((source, True) for source in ("genotype = eval(name)", "read = eval\nread(name)", "exec('x = 1')")),
        *((f"{source}\n", True) for source in ("import pickle as p", "from pickle import loads", "import a, marshal")),
        *((source, True) for source in ("from torch import nn, load", "state = torch.load(path)")),
        *((f"numpy.load(path, allow_pickle={value})", value != "False") for value in ("True", "allowed", "False")),
        *((source, False) for source in ("network.eval()", "pattern = re.compile('x')", "json.load(file)")),
    ],
)
def test_the_search_for_such_calls_finds_them(source, runs):
    assert bool(what_runs_input(source)) is runs
