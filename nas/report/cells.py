"""Genotypes as lines of text: a table of many, all about one, the difference of two; and as HTML for a notebook."""

import html
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nas.errors import count, printable
from nas.models.size import network_size
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile, Provenance
from nas.search_space.space import SearchSpace


def table(files: Mapping[str, GenotypeFile | str]) -> Iterator[str]:
    """Make a heading and one row for each file.

    Args:
        files: the content of each file by its name, or a sentence that says what is wrong with the file.
    """
    width = max([4, *(len(printable(name, 40)) for name in files)])
    row = f"{{:<{width}}}  {{:>5}}  {{:>7}}  {{:>9}}  {{:>13}}  {{:>8}}  {{:>8}}"
    yield row.format("", "", "", "", "reported", "reported", "supernet")
    yield row.format("name", "nodes", "weights", "mult-adds", "test error", "weights", "accuracy")
    for name, file in files.items():
        if isinstance(file, str):
            yield f"{printable(name, 40):<{width}}  {file}"
            continue
        genotype, provenance = Genotype(**file.cells()), file.provenance
        size = network_size(genotype)
        space = genotype.space
        nodes = dict.fromkeys(str(len(space.by_node(genotype.edges(kind)))) for kind in space.cells)
        error, params = provenance.reported_cifar10_test_error_percent, provenance.reported_params_millions
        accuracy = provenance.supernet_accuracy
        columns = (
            "/".join(nodes),
            f"{size.weights / 1e6:.2f} M",
            f"{size.multiply_adds / 1e6:.0f} M",
            "-" if error is None else f"{printable(error, 20)} %",
            "-" if params is None else f"{params:g} M",
            "-" if accuracy is None else f"{printable(round(100 * accuracy, 1), 6)} %",
        )
        yield row.format(printable(name, 40), *columns)


def description(genotype: Genotype, provenance: Provenance) -> Iterator[str]:
    """Describe the cells, how good they truly are, the provenance, and the size of the network."""
    space = genotype.space
    for kind, title in zip(space.cells, space.titles, strict=True):
        nodes, concat = space.by_node(genotype.edges(kind)), genotype.concat(kind)
        width = len(_state(nodes[-1][0], space))
        yield from ("", title)
        for node, incoming in nodes:
            yield from _edges_into(_state(node, space), width, [(name, _state(at, space)) for name, at in incoming])
        how = "--concatenated--> " if len(concat) > 1 else "--> "
        yield f"  {', '.join(_state(state, space) for state in concat)} {how}c_{{k}}"
    if truth := genotype.truth():
        yield from ("", "accuracy of its network, as the authors of the benchmark measured it", f"  {truth}")
    known = provenance.model_dump(exclude_none=True, exclude={"candidates"})
    if known:
        yield from ("", "provenance")
    for field, value in known.items():
        value = ", ".join(f"{key} {version}" for key, version in value.items()) if field == "versions" else value
        yield f"  {field}: {printable(value, 400)}"
    if provenance.candidates:
        yield f"  candidates: {count(len(provenance.candidates), 'cell')}; this is the best cell that a search found"
    size = network_size(genotype)
    head = f", {size.weights_with_head:,} with the auxiliary head" if space.auxiliary_head else ""
    yield from ("", f"size with {space.final_network_in_words} and images of CIFAR-10")
    yield f"  {size.weights:,} weights{head}"
    yield f"  {size.multiply_adds:,} multiply-adds per image"


def as_html(genotype: Genotype) -> str:
    """Return the cells as SVG elements, which a light or dark page can hold; without Graphviz, their description."""
    from nas.search_space import pictures  # here, as it takes a while

    drawn = [pictures.svg(source) for source in genotype.sources().values()]
    return "".join(drawn) if all(drawn) else preformatted(description(genotype, Provenance()))


def preformatted(lines: Iterable[str]) -> str:
    """Return lines as an HTML element that keeps their spaces."""
    text = "\n".join(lines)
    return f"<pre>{html.escape(text)}</pre>"


def difference(before: Genotype, after: Genotype) -> list[str]:
    """List the edges and outputs that only one genotype has, per cell and node: '-' for the first, '+' the second."""
    space, lines = before.space, []
    if after.space != space:
        return [f"- a cell of {space.name}", f"+ a cell of {after.space.name}"]
    for kind, title in zip(space.cells, space.titles, strict=True):
        old, new = _edges_of_nodes(before, kind), _edges_of_nodes(after, kind)
        for node in sorted(old | new):
            gone, come = old.get(node, Counter()), new.get(node, Counter())
            if gone != come:
                lines.append(f"{title}, {_state(node, space)}")
                for sign, edges in (("-", gone - come), ("+", come - gone)):
                    lines += [f"{sign} {_state(at, space):>7} --{name}-->" for at, name in sorted(edges.elements())]
        concats = before.concat(kind), after.concat(kind)
        if concats[0] != concats[1]:
            lines.append(f"{title}, c_{{k}}")
            for sign, nodes in zip("-+", concats, strict=True):
                lines.append(f"{sign} {', '.join(_state(node, space) for node in nodes)}")
    return lines


def _edges_into(node: str, width: int, incoming: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Draw the edges into a node, two in a line."""
    for first in range(0, len(incoming), 2):
        (left, one), *others = incoming[first : first + 2]
        right = "".join(f" <--{name}-- {source}" for name, source in others)
        yield f"  {one:>7} --{left}--> {node:>{width}}{right}"


def _state(state: int, space: SearchSpace) -> str:
    inputs = space.num_inputs
    return f"c_{{k-{inputs - state}}}" if state < inputs else f"node {state - inputs}"


def _edges_of_nodes(genotype: Genotype, kind: str) -> dict[int, Counter]:
    """Count for each node how often it has an edge of a source and a primitive."""
    nodes = genotype.space.by_node(genotype.edges(kind))
    return {node: Counter((source, primitive) for primitive, source in edges) for node, edges in nodes}
