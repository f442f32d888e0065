"""The one reader of genotypes: every form in which people keep them, what is said of the rest, and its time."""

import codecs
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.search_space.conversions import to_nasbench301, to_nni
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Provenance
from nas.search_space.reader import read
from tests.damaged_json import genotype_or_sentence, spliced

pytestmark = pytest.mark.usefixtures("empty_folder")
V1, V2 = Genotype.load("DARTS_V1"), Genotype.load("DARTS_V2")
T1, T2 = V1.to_text(), V2.to_text()
FIELDS = V1.model_dump()
PAIRS = {cell: list(zip(FIELDS[cell][::2], FIELDS[cell][1::2], strict=True)) for cell in ("normal", "reduce")}
DICTIONARY = {field: [list(item) if field in PAIRS else item for item in FIELDS[field]] for field in FIELDS}
POSITIONAL = f"Genotype({V1.normal}, {V1.normal_concat}, {V1.reduce}, [2, 3, 4, 5]"
BY_SOURCE = {cell: [edge for pair in PAIRS[cell] for edge in sorted(pair, key=lambda edge: edge[1])] for cell in PAIRS}
SAME = {V1, Genotype(**FIELDS | BY_SOURCE)}  # in NAS-Bench-301's order of the edges of a node
NASBENCH301 = {"budget": 100.0, "info": [{"a": 1}], "config": to_nasbench301(V1) | {"ImageAugmentation:cutout": "True"}}


def written(normal=FIELDS["normal"], concat="range(2, 6)", reduce=FIELDS["reduce"], more=""):
    return f"Genotype(normal={normal}, normal_concat={concat}, reduce={reduce}, reduce_concat={concat}{more})"


# All of these are DARTS_V1: how they are kept, and what is said besides.
KEPT = {
    "line of a log": (f"[2026-10-01 13:25:46,378] it's epoch #3: genotype = {T1} (best)\n",),
    "print of a module": (f"self.best: Genotype = genotypes.{T1}\n",),
    "formatted": (T1.replace("'", '"').replace("[(", "[\n    (").replace(")]", "),\n]").replace("))", "),\n)"),),
    "comment above": (f"# seed 3 of 'four\n{T1}",),
    "comment behind": (f"X = {T1}  # best (of four",),
    "comments within": (T1.replace("[(", "[  # it's here (\n (", 1).replace("), (", "),\n  ("),),
    "another that is a comment": (f"# X = {T2}\nX = {T1}\n  #{T2}",),
    "another that is switched off": (f"X = {T1}\n'''\nX = {T2}\n'''\n",),
    "two names": (f"MyNet = {T1}\nDARTS = MyNet  # chosen\nBEST=DARTS",),
    "twice": (f"{T1}\n{T1}",),
    "module of Python 2": (f"print 'x'\nX = {T1}\ndef f():\n  return Genotype(normal=g, reduce=list(map(f, x)))",),
    "prose": (f"the Genotype (of DARTS), class Genotype(NamedTuple), {{normal}}: {T1}",),
    "shell": (f'# train\npython train.py --genotype "{T1}"\n',),
    "string in a module": (f'MODELS = {{\n  "best": "{T1}",\n}}',),
    "JSON lines": ("\n".join(json.dumps({"epoch": epoch, "genotype": T1}) for epoch in range(2)),),
    "positional": (f"{POSITIONAL})",),
    "half positional": (f"Genotype({V1.normal}, range(2, 6), reduce={V1.reduce}, reduce_concat={{2, 3, 4, 5}})",),
    "nested": (written(PAIRS["normal"], "range(2, 6)", [list(map(list, pair)) for pair in PAIRS["reduce"]]),),
    "numpy 2": (written([(np.str_(kind), np.int64(at)) for kind, at in V1.normal], repr(np.arange(2, 6))),),
    "numpy 2, its module": (written(concat="numpy.array([numpy.uint8(2), 3, 4, 5], dtype=object)"),),
    "torch": (written([(kind, torch.tensor(source)) for kind, source in V1.normal], "tensor([2, 3, 4, 5])"),),
    "list of a range": (written(concat="list(range(2, 6, 1))"),),
    "Python 2": (written(str(V1.normal).replace("('", "(u'")),),
    "names of AdvRush": (T1.replace("reduce", "reduction"),),
    "further fields": (written(more=", aux=[], connects=f(x)"), "these fields are left out: aux, connects."),
    "further argument": (f"{POSITIONAL}, None)", "these fields are left out: argument 5."),
    "weights": (written([(*edge, 0.25) for edge in V1.normal]), "these fields are left out: the weights in normal."),
    "a log of epochs": (f"{T2}\n\n{T2}\n12:00 {T1}\n", "the last of 3 genotypes is used, in line 4."),
    "a log with names": (f"genotype = {T2}\n  genotype = {T1}", "the last of 2 genotypes is used, in line 2."),
    "dictionary": (repr(FIELDS),),
    "JSON of a dictionary": (json.dumps({"spec": DICTIONARY | {"id": 3}}), "these fields are left out: id."),
    "dictionary behind a name": (f"X = {DICTIONARY!r}",),
    "NNI 2": (json.dumps({key: value[0] if "input" in key else value for key, value in to_nni(V1).items()}),),
    "NNI, printed, with the size of the network": (repr(to_nni(V1) | {"width": 36, "depth": 20}),),
    "NNI, printed in a log": (f"[2021-02-22 16:16:01] INFO best: {to_nni(V1)}",),
    "NNI, further key": (repr(to_nni(V1) | {"\x1b[2J": 1}), r"these fields are left out: \x1b[2J."),
    "NNI, list of one": (repr([to_nni(V1)]),),
    "NAS-Bench-301, result": (json.dumps(NASBENCH301),),
    "NAS-Bench-301, printed result": (repr(NASBENCH301),),
}
ENCODINGS = [
    lambda text: codecs.BOM_UTF8 + text.encode(),
    lambda text: text.replace("\n", "\r\n").encode("utf-16"),  # of Windows
    lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    str.encode,
]


@pytest.mark.parametrize("kept", KEPT)
def test_every_form_is_read_from_a_file_and_from_the_argument_itself(kept):
    text, *notes = KEPT[kept]
    for encode in ENCODINGS:
        Path("my cell.txt").write_bytes(encode(text))
        found = read("my cell.txt")
        assert found.genotype in SAME
        assert (found.name, found.where, found.file.provenance) == ("my-cell", "my cell.txt", Provenance())
        assert found.notes == notes
    found = read(text)
    assert (found.where, found.name, found.notes) == ("text", "genotype", notes)
    assert found.genotype in SAME


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"A = {T2}\nB = {T1}\nC = B\n", {"A": V2, "B": V1, "C": V1, "2": V1}),
        (f"{T2}\n\nMyNet = Genotype(\n{T1[9:]}", {"1": V2, "MyNet": V1, "3": V1}),
        (f"class Cells:\n  A = {T2}\n  X['B'] = {T1}", {"A": V2, "B": V1}),
        (f"CELLS = {{'A': {T2},\n 'B': {T1}}}", {"A": V2, "B": V1}),
        (f"A = {T1}\nA = {T2}\nB = {T1}", {"A": V2, "B": V1}),
        (f"A = {T1}\nB = Genotype(normal=['x'])", {"A": V1}),
        (json.dumps({"A": T2, "b": {"B": DICTIONARY, "c": [to_nni(V2)]}}), {"A": V2, "B": V1, "b.B": V1, "b.c.0": V2}),
        (repr([to_nni(V2), to_nni(V1)]), {"0": V2, "1": V1}),
    ],
    ids=lambda value: f"{value!s:.20}",
)
def test_of_several_one_is_chosen_by_name_or_line(text, names):
    Path("cells.py").write_text(text)
    for name, genotype in names.items():
        found = read(f"cells.py:{name}")
        assert found.genotype == genotype
        assert found.name == ("cells" if name.isdigit() else name)
    with pytest.raises(InputError, match=r"^genotype cells.py: \d genotypes; choose one by FILE:NAME or FILE:LINE; "):
        read("cells.py")
    with pytest.raises(InputError, match=r"^genotype cells.py: no genotype is named 'Z'; the names are .*"):
        read("cells.py:Z")


def test_a_run_folder_a_name_a_genotype_file_and_names_with_a_colon(monkeypatch):
    V1.save("runs/mine/genotype.json", Provenance(method="search"))
    V2.save("genotypes/mine.json", Provenance(method="by hand"))
    for source, name, genotype, method in (
        *(("runs/mine", "mine", V1, "search"), ("runs/mine/", "mine", V1, "search")),
        *(("runs/mine/genotype.json", "genotype", V1, "search"), ("mine", "mine", V2, "by hand")),
        (Path("genotypes/mine.json").read_text(), "genotype", V2, "by hand"),
    ):
        found = read(source)
        assert (found.name, found.genotype, found.file.provenance.method, found.notes) == (name, genotype, method, [])
    Path("cells:2.py").write_text(T1)
    Path("cells").write_text(T2)
    assert (read("cells:2.py").genotype, read("cells:1").genotype) == (V1, V2)
    Path("DARTS_V2").mkdir()  # such as one of images
    assert read("DARTS_V2").genotype == V2
    monkeypatch.chdir("runs/mine")
    assert read(".").name == "mine"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "there is no genotype in it. What can be read: a genotype file; Genotype(normal=…, …), also in a"),
        (b"\xff", "not a text in UTF-8 or UTF-16. What can be read: "),
        (b"\x80\x04\x95Genotype(normal=[('a', 0)])", "not a text in UTF-8 or UTF-16"),
        (b"Genotype(normal=['\0'])", "line 1: source code string cannot contain null bytes."),
        (b"Genotype(normal=['\x1b[2J')", "line 1: "),
        (b"{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), and there is"),
        (b"[" * 1_000_000, "not JSON ("),
        (b"Genotype('" + b"[" * 100_000, "line 1: the genotype is cut off."),
        (b"Genotype('', " + b"[" * 300 + b"]" * 300 + b")", "line 1: too many nested parentheses"),
        (b"Genotype('', " + b"-" * 90_000 + b"1)", "line 1: nested too deeply."),
        (b"Genotype(''" + b".a" * 40_000 + b")", "line 1: "),
        (b'{"normal/op_2_0":' + b"[" * 900 + b"]" * 900 + b"}", "normal/op_2_0: must be one of"),
        (b'{"format_version": 1}', "normal: missing."),
        (b'{"format_version": 2}', "format_version is 2, this nas reads 1: install a newer nas."),
        (b'{"normal/op_2_0": "skip_connect", "normal/op_2_0": "skip_connect"}', "not JSON ('normal/op_2_0' is given"),
        (b"|nor_conv_3x3~0|+|skip_connect~0|none~1|", "cell: 3 edges, but a cell has 3 nodes with an edge from"),
        (b"Genotype(recurrent=[('relu', 0)], concat=range(1, 9))", "normal: missing."),
        (f"'''{T1}'''".encode(), "there is no genotype in it."),
        (f"X = {T1}._replace(normal=[])".encode(), "line 1: names or calls where values are expected"),
        (f"{T1}\n12:00 {T2[:99]}".encode(), "line 2: the genotype is cut off."),
        (written([V1.normal[:1], V1.normal[1:4], V1.normal[4:]]).encode(), "normal[0]: 1 edge, but a node has two."),
        (written([V1.normal[0], *PAIRS["normal"][1:], V1.normal[1]]).encode(), "normal["),
        (written([(*edge, 1) for edge in V1.normal]).encode(), "normal[0]: "),
    ],
    ids=lambda value: repr(value[:20]),
)  # fmt: skip
def test_what_is_no_genotype_is_told_in_a_sentence(data, expected):
    Path("a.txt").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read("a.txt")
    sentence = str(caught.value)
    assert sentence.startswith(f"genotype a.txt: {expected}")
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert len(sentence) < 600


PARTS = ["Genotype(", "Genotype('')\n", "{", "{'normal'}", "'", "'\\", "\n", " ", "a=a\n", "f'{a}'", "[", "#\n"]
SIZES = [(120_000, 2), pytest.param(1_000_000, 5, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("size", "seconds"), SIZES)
@pytest.mark.parametrize("part", [*PARTS, "'''\n", ".a", "-"])
def test_a_megabyte_takes_seconds(part, size, seconds):
    """What grows with the square of the length takes minutes; a machine that does much else doubles the rest."""
    for before, after in (("", ""), ("Genotype(normal=['',", "])"), ("['',", "]")):
        Path("large.txt").write_text(before + part * (size // len(part)) + after)
        begin = time.process_time()
        with pytest.raises(InputError) as caught:
            read("large.txt")
        assert str(caught.value).isprintable()
        assert time.process_time() - begin < seconds


WORDS = (*DARTS.primitives, "Genotype(", "range(2, 6)", "{'normal':", "'''", "# ", "X = ")


@pytest.mark.fuzz
@given(
    text=spliced(f"A = {T1}  # it's\n'''\n{{'normal': {T2}}}", WORDS),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1"]),
)
def test_any_file_is_a_genotype_or_a_sentence(text, encoding, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "spliced.txt"
    path.write_bytes(text.encode(encoding, errors="replace"))
    genotype_or_sentence(lambda source: read(source).genotype, str(path))
