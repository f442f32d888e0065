"""What damage makes of JSON, as strategies of hypothesis: values and pieces of text in the place of others."""

import copy
import functools
import string
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from nas.errors import InputError
from nas.search_space.genotype import Genotype

SIGNS = [*"[](){},:='\"\\\n\0²", *string.digits]
ORDERS = "\x1b[31m\n"  # to a terminal
WORDS = ["NaN", "-Infinity", "1e999", r"\ud800", "9" * 400, "9" * 5000, "[" * 300, "../", ORDERS]
VALUES = [2**63, -1, 10**400, "../x", "/etc/passwd", {"../x": 1}]


@functools.cache
def scraps(words: tuple[str, ...]) -> SearchStrategy[str]:
    """Short texts, and words: those that a parser may trip over, and those given."""
    return st.text(max_size=3) | st.sampled_from([*SIGNS, *WORDS, *words])


@functools.cache
def junk(words: tuple[str, ...]) -> SearchStrategy[Any]:
    """Any JSON, NaN and infinities included, with scraps for its texts and names."""
    simple = st.none() | st.booleans() | st.integers() | st.floats() | scraps(words)
    return st.recursive(
        simple | st.just(ORDERS) | st.sampled_from([*VALUES, *words]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scraps(words), inner, max_size=3),
        max_leaves=6,
    ).map(copy.deepcopy)  # a change of one must not change what the strategy hands out again


@st.composite
def damaged(draw: Callable, content: Any, words: tuple[str, ...]) -> Any:
    """Objects and lists with up to three values replaced, added or left out, at any depth; words as in the file."""
    content = copy.deepcopy(content)
    names, values = scraps(words), junk(words)
    for _ in range(draw(st.integers(1, 3))):
        item = content
        while True:
            key = draw(st.sampled_from(sorted(item) if isinstance(item, dict) else range(len(item))))
            if not (isinstance(item[key], dict | list) and item[key] and draw(st.integers(0, 3))):
                break
            item = item[key]
        match draw(st.sampled_from(["replace", "add", "delete"])):
            case "replace":
                item[key] = draw(values)
            case "add" if isinstance(item, dict):
                item[draw(names)] = draw(values)
            case "add":
                item.insert(key, draw(values))
            case "delete" if item is not content or len(item) > 1:
                del item[key]
    return content


@st.composite
def spliced(draw: Callable, whole: str | bytes, words: tuple[str, ...]) -> str | bytes:
    """A text, or bytes, with up to three pieces in the place of others."""
    pieces = scraps(words) if isinstance(whole, str) else st.binary(max_size=9) | scraps(words).map(str.encode)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(whole)))
        whole = whole[:start] + draw(pieces) + whole[start + draw(st.integers(0, 12)) :]
    return whole


def genotype_or_sentence(load: Callable[[Any], Genotype], damaged: Any) -> None:
    """What is loaded is a genotype, or the one line that refuses it has no orders to a terminal."""
    sentence, genotype = "", Genotype.random(0)
    try:
        genotype = load(damaged)
    except InputError as error:
        sentence = str(error)
    assert sentence.isprintable()
    assert Genotype.from_text(genotype.to_text()) == genotype
