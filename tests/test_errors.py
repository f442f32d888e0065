"""What is said: numbers agree with their nouns, and what somebody else wrote stays text."""

import html
import re

import pytest
from hypothesis import given, strategies
from markdown_it import MarkdownIt

from nas.config.flags import SearchConfig
from nas.errors import InputError, count, markdown, printable
from nas.search_space import conversions
from nas.search_space.genotype import Genotype
from nas.selection.protocol import plan
from tests.in_process import TWO, call

ONE_OF_SEVERAL = r"(?<![\d.,/] )(?<![\d.,/])\b1 (?!is|was|has|×)[a-z]+s\b"


def test_count():
    nouns = ("step", "step", "step", "class", "class", "search", "batch", "epoch")
    counted = ("0 steps", "1 step", "2 steps", "1 class", "2 classes", "3 searches", "2 batches", "2 epochs")
    for noun, words in zip(nouns, counted, strict=True):
        assert count(int(words[0]), noun) == words
    assert (count(1000, "step", ","), count(1000, "image")) == ("1,000 steps", "1000 images")


def test_sentences_about_one():
    assert plan(SearchConfig())[0].startswith("1 search, seed 0")
    with pytest.raises(ValueError, match="1 edge, but a cell has"):
        Genotype(normal=[("skip_connect", 0)], normal_concat=[2], reduce=[], reduce_concat=[])
    with pytest.raises(InputError, match="1 node, but cells of"):
        conversions.to_nni(Genotype.random(0, 1))


def test_runs_of_one_step_and_one_epoch(tmp_path, capfd):
    size = ["--dataset=digits", "--train-limit=4", "--init-channels=2", "--num-cells=1", "--batch-size=2", "--epochs=1"]
    calls = [
        ("search", [*size, "--num-nodes=1", *TWO, "--dry-run"]),
        ("search", [*size, "--num-nodes=1", *TWO, "--name=a"]),
        ("search", ["--resume=runs/a"]),
        ("search", ["--resume=runs/a", "--epochs=2"]),
        ("train_final", [*size, "--batch-size=4", "--auxiliary-weight=0", "--genotype=a", "--holdout-fraction=0.25"]),
    ]
    for script, arguments in calls:
        assert call(script, tmp_path, *arguments) == 0
        out = capfd.readouterr().out
        assert not re.search(ONE_OF_SEVERAL, out), out
    assert re.search(ONE_OF_SEVERAL, "it took 1 steps")


@given(strategies.text(alphabet="\\`*_[](){}<>&|~!$#@^:/.w-+='\"\n\u202e a1;", max_size=30))
def test_a_name_is_nothing_but_text_in_markdown(name):
    page = MarkdownIt().enable(["table", "strikethrough"]).render(f"- “{markdown(name)}”")
    assert page.count("<") == 4
    assert html.unescape(page) == f"<ul>\n<li>“{printable(name, 60)}”</li>\n</ul>\n"
