import copy
import functools
import json
import math
import operator
import os
import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from nas.errors import InputError
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile, known_names
from tests.damaged_json import damaged, genotype_or_sentence, spliced

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "published-genotypes.json"
V1, V2 = Genotype.load("DARTS_V1"), Genotype.load("DARTS_V2")
WORDS = (*DARTS.primitives, "range(2, 6)", "normal", "concat", "1e9")
CONTENT = json.loads((ROOT / "genotypes" / "DARTS_V1.json").read_text(encoding="utf-8"))


def derive_cell(alphas):
    """One cell by the rule of the paper."""
    genes, node = [], 2
    while len(alphas):
        rows, alphas = alphas[:node], alphas[node:]
        ranked = rows.softmax(-1)[:, 1:].amax(-1).argsort(descending=True, stable=True)
        genes += [(DARTS.primitives[1 + rows[source, 1:].argmax()], source) for source in ranked[:2].tolist()]
        node += 1
    return tuple(genes)


def derive(normal, reduce=None):
    return Genotype.derive(SimpleNamespace(normal=normal, reduce=normal if reduce is None else reduce))


@given(
    num_nodes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    scale=st.sampled_from([1e-3, 1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_derive_agrees_with_an_independent_rule(num_nodes, scale, dtype, seed):
    torch.manual_seed(seed)
    normal, reduce = (scale * torch.randn(n * (n + 3) // 2, 8, dtype=dtype) for n in num_nodes)
    genotype = derive(torch.nn.Parameter(normal), torch.nn.Parameter(reduce))
    assert (genotype.normal, genotype.reduce) == (derive_cell(normal.double()), derive_cell(reduce.double()))
    assert [genotype.normal_concat, genotype.reduce_concat] == [tuple(range(2, 2 + n)) for n in num_nodes]


@given(row=st.lists(st.floats(-5, 5), min_size=8, max_size=8), data=st.data())
def test_of_edges_with_the_same_alphas_in_another_order_the_first_win(row, data):
    """Their weights are equal, so the rounding of a sum must not decide."""
    assume(max(row[1:]) > row[0])
    rows = [[row[0], *data.draw(st.permutations(row[1:]))] for _ in range(5)]
    assert [source for _, source in derive(torch.tensor(rows, dtype=torch.float64)).normal[2:]] == [0, 1]
    assert derive(torch.zeros(14, 8)).normal == (("max_pool_3x3", 0), ("max_pool_3x3", 1)) * 4


SHAPES = [(13, 8), (14, 7), (0, 8), (8, 14), (14,), (), (14, 8, 1)]


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [(torch.zeros(shape), rf"reduce cell: shape {re.escape(str(shape))}") for shape in SHAPES]
    + [(torch.full((14, 8), value), "reduce cell: not all are finite") for value in (math.nan, math.inf, -math.inf)],
)
def test_derive_refuses_alphas_of_other_shapes_or_not_finite(alphas, expected):
    with pytest.raises(ValueError, match=expected):
        derive(torch.zeros(14, 8), alphas)


def test_equal_by_value_hashable_immutable_and_checked():
    fields = V1.model_dump()
    same = Genotype(**json.loads(json.dumps(fields)) | {"normal_concat": range(2, 6)})
    assert same == V1 != V2
    assert {same, V1, V2} == {V1, V2}
    assert {type(same.normal), type(same.normal[0]), type(same.normal_concat)} == {tuple}
    with pytest.raises(ValidationError):
        same.normal = V2.normal
    wrong = {"normal": V1.normal[:7], "normal_concat": range(2, 7), "reduce_concat": "2345", "depth": 3}
    for field, value in (wrong | {"reduce": (("skip_connect", 0), ("skip_connect", True))}).items():
        with pytest.raises(ValueError, match=field):
            Genotype(**fields | {field: value})


def test_cells_of_the_repository_survive_file_and_text(tmp_path):
    for path in (ROOT / "genotypes").glob("*.json"):
        genotype, file = Genotype.load(path), GenotypeFile.load(path)
        genotype.save(tmp_path / "copy.json", file.provenance)
        assert (Genotype.load(tmp_path / "copy.json"), GenotypeFile.load(tmp_path / "copy.json")) == (genotype, file)
        assert Genotype.from_text(f"FOUND_1 = {genotype.to_text()}\n") == genotype


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the list of published cells is not on this machine")
def test_published_cells_are_what_was_published():
    for published in json.loads(PUBLISHED.read_text(encoding="utf-8")):
        name = published.pop("name")
        assert Genotype.load(name) == Genotype(**{field: published.pop(field) for field in V1.model_dump()}), name
        known = {field: value for field, value in published.items() if value is not None}
        assert GenotypeFile.load(name).provenance.model_dump(exclude_none=True) == known, name


def test_save_replaces_the_file_in_one_step(tmp_path, monkeypatch):
    V1.save(tmp_path / "new" / "cell.json")
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("the old file stands until now"))
    with pytest.raises(pytest.fail.Exception):
        V2.save(tmp_path / "new" / "cell.json")
    assert Genotype.load(tmp_path / "new" / "cell.json") == V1


def test_a_name_means_the_folder_here_then_the_shipped_one(empty_folder):
    assert Genotype.load("DARTS_V1") == V1
    V2.save("genotypes/DARTS_V1.json")
    V2.save("genotypes/mine.v2.json")
    assert Genotype.load("DARTS_V1") == Genotype.load("mine.v2") == V2
    assert {"DARTS_V1", "DARTS_V2", "mine.v2"} <= set(known_names())
    V1.save("mine.v2")
    assert Genotype.load("mine.v2") == V1, "a path that exists is that path"
    for name in ("DARTS_V3", "DARTS_V1.json", "elsewhere/DARTS_V1", "a\0b", "n" * 5000):
        text = sentence(Genotype.load, name)
        assert name[:50] in text
        assert re.search("known names: .*DARTS_V2.*PC_DARTS_cifar" if len(name) < 5000 else "too long", text)


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
    place, found, text = sentence(Genotype.load, path).partition(": ")
    assert (place, found) == (f"genotype {path}", ": ")
    assert len(text) < 300
    return text


def changed(place, value):
    """The content of a good file with one value changed, added (at a new key), or left out (`...`)."""
    content = copy.deepcopy(CONTENT)
    *parents, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    item = functools.reduce(operator.getitem, parents, content)
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
    *[(place, 4, f"{place.replace('/', '.')}: unknown field") for place in ("depth", "normal/depth", "provenance/x")],
    ("two\nlines" * 999, 4, r".*two.*lines.*unknown field"),
    ("provenance/versions", {"\x1b[2J\r": 4}, r"provenance\.versions.*string"),
    *[("format_version", value, "format_version is .*newer") for value in (2, 10**3000)],
    *[(place, ..., f"{place.replace('/', '.')}: missing") for place in ("format_version", "normal", "reduce/concat")],
    *[("format_version", value, rf"format_version: .*{value}") for value in (0, True, 1.0)],
    *[("normal/edges/3/1", value, rf"normal\.edges\[3\]\[1\]: .*integer.*{value!r}") for value in ("1", True, 1.0)],
    ("reduce/concat/0", "2", r"reduce\.concat\[0\]: .*integer.*'2'"),
    ("provenance/num_images", True, r"provenance\.num_images: .*integer.*True"),
    ("provenance/supernet_accuracy", math.nan, r".*(NaN|provenance\.supernet_accuracy)"),
    *[("reduce/concat", value, f"reduce.concat: {re.escape(str(value))}, but .* 2 to 5, rising")
      for value in ([], [3, 2], [2, 2], [1, 2], [5, 6])],
    ("reduce/concat", list(range(2, 9999)), r"reduce\.concat: \[2, 3"),
]  # fmt: skip
BAD_FILES = [
    *[(changed(place, value), expected) for place, value, expected in BAD_FIELDS],
    (json.dumps(CONTENT).encode()[:-1], "not JSON .*line 1"),
    (json.dumps(CONTENT).encode().replace(b"DARTS", b"D\xff"), "not JSON .*utf-8"),
    (b'{"normal":' * 100_000, "not JSON .*recursion"),
    (b"[" * 500 + b"]" * 500, ".*recursion"),  # within what Python's parser takes
    (b"1" * 5000, "not JSON .*digits"),
    (b"[1]", r"content: .*\[1\]"),
]


@pytest.mark.parametrize(("data", "expected"), BAD_FILES, ids=[expected for _, expected in BAD_FILES])
def test_what_is_wrong_in_a_file_is_named(data, expected, tmp_path):
    assert re.match(expected, refusal(tmp_path / "bad.json", data))


def test_a_huge_file_is_refused_without_being_read(tmp_path):
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 1 << 30)
    tracemalloc.start()
    assert re.match("genotype .*huge.json: larger than 1 MiB", sentence(Genotype.load, tmp_path / "huge.json"))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


TEXT = V1.to_text()
BAD_TEXTS = [
    ("Genotype", "Phenotype", "there is no Genotype"),
    ("Genotype(", "Genotype(*range(2, 6), ", "line 1: .*follows keyword|names or calls"),
    ("Genotype(", "Genotype(" + " " * (1 << 20), "longer than"),
    (", reduce_concat=range(2, 6)", "", "reduce_concat: missing"),
    ("reduce=", "normal=", "'normal' is given twice"),
    ("reduce=", "reduction=[], reduce=", "reduce is given twice"),
    ("reduce=", "depth=3, reduce=", "depth: unknown field"),
    ("'skip_connect', 0", "'none', 0", r"normal\[2\]\[0\]: unknown primitive 'none'"),
    ("'sep_conv_3x3', 1", "'sep_conv_3x3', 2", r"normal\[0\]: sep_conv_3x3 comes from state 2"),
    ("'sep_conv_3x3', 1", "'sep_conv_3x3', -1", r"normal\[0\]\[1\]: .*-1"),
    ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 1]", "does not match"),
    ("'sep_conv_3x3'", "'sep_conv_3x3\"", "line 1: unterminated string"),
    ("range(2, 6)", "range(2, 7)", r"normal_concat: \[2, 3, 4, 5, 6\]"),
    ("range(2, 6)", "range(2, 99999)", r"range of \[2, 99999\]"),
    ("range(2, 6)", "range()", r"range of \[\]"),
    ("range(2, 6)", "range(2, 6, 0)", "must not be zero"),
    ("range(2, 6)", "[2 3 4 5]", "line 1: .*, at .2 3 4 5"),
    *[("range(2, 6)", new, "names or calls where values are expected")
      for new in ("concat", "sorted([2, 3, 4, 5])", "range(2, 10**9)", "[2, 3, 4, 5][::-1]", "f'{concat}'")],
    ("range(2, 6))", "range(2, 6)), Genotype(normal=['a'])", "2 genotypes"),
    ("range(2, 6))", "range(2, 6), **{'aux': 1})", "names or calls"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), BAD_TEXTS, ids=lambda value: value[:20])
def test_a_bad_text_is_explained(old, new, expected):
    assert old in TEXT
    before, after = TEXT.rsplit(old, 1) if old.endswith("))") else TEXT.split(old, 1)
    text = sentence(Genotype.from_text, before + new + after)
    assert text.startswith("genotype text")
    assert re.search(expected, text)
    assert text.isprintable()
    assert len(text) < 300


@pytest.mark.fuzz
@given(text=damaged(CONTENT, WORDS).map(json.dumps) | spliced(json.dumps(CONTENT), WORDS))
def test_any_file_gives_a_genotype_or_a_sentence(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(text, encoding="utf-8")
    genotype_or_sentence(Genotype.load, path)


def test_a_text_is_never_run(empty_folder, tmp_path, monkeypatch):
    """A call of the shell is put before, after and in place of every word, string and sign of a text."""
    payload = "__import__('os').system('touch x')"
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("the text was run"))
    for token in re.finditer(r"'\w+'|\w+|[^\s\w]", TEXT):
        for start, end in ((token.start(), token.start()), (token.end(), token.end()), token.span()):
            genotype_or_sentence(Genotype.from_text, TEXT[:start] + payload + TEXT[end:])
    for place in ("format_version", "normal", "normal/edges/0/0", "normal/edges/0/1", "reduce/concat/0"):
        refusal(tmp_path / "bad.json", changed(place, payload))
    sentence(Genotype.load, payload)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


RUNS = re.compile(
    r"(?<![.\w\"])(eval|exec|compile|__import__)\b|(?<!\.)torch\.(jit\.|hub\.)?load\b|allow_pickle=(?!False\b)"
    r"|from torch import .*\bload\b|(import|from) .*\b(_?pickle|marshal|shelve|dill|cloudpickle|joblib|builtins)\b"
)


def test_nothing_in_the_repository_runs_what_it_reads():
    for path in (*(ROOT / "nas").rglob("*.py"), ROOT / "search.py", ROOT / "train_final.py"):
        assert not RUNS.search(path.read_text(encoding="utf-8")), path
    for source in (
        *("genotype = eval(name)", "read = eval\nread(name)", "exec('x = 1')", "load(path, allow_pickle=True)"),
        *("import pickle as p", "import a, marshal", "from pickle import loads", "from torch import nn, load"),
        "state = torch.load(path)",
    ):
        assert RUNS.search(source), source
    for source in ("network.eval()", "pattern = re.compile('x')", "json.load(file)", "load(path, allow_pickle=False)"):
        assert not RUNS.search(source), source
