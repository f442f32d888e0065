"""Genotypes as lines of text: a table of many, all about one, the difference of two."""

from collections import Counter
from collections.abc import Iterator, Mapping

from nas.errors import count, printable
from nas.models.size import network_size
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile, Provenance

CELLS = {"normal": "normal cell", "reduce": "reduction cell"}


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
        nodes = dict.fromkeys(str(len(DARTS.by_node(edges))) for edges in (genotype.normal, genotype.reduce))
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
    """Describe both cells, the provenance, and the size of the network."""
    for cell, name in CELLS.items():
        edges, concat = getattr(genotype, cell), getattr(genotype, f"{cell}_concat")
        nodes = DARTS.by_node(edges)
        width = len(_state(nodes[-1][0]))
        yield from ("", name)
        for node, ((left, one), (right, two)) in nodes:
            yield f"  {_state(one):>7} --{left}--> {_state(node):>{width}} <--{right}-- {_state(two)}"
        yield f"  {', '.join(map(_state, concat))} --concatenated--> c_{{k}}"
    known = provenance.model_dump(exclude_none=True, exclude={"candidates"})
    if known:
        yield from ("", "provenance")
    for field, value in known.items():
        value = ", ".join(f"{key} {version}" for key, version in value.items()) if field == "versions" else value
        yield f"  {field}: {printable(value, 400)}"
    if provenance.candidates:
        yield f"  candidates: {count(len(provenance.candidates), 'cell')}; this is the best cell that a search found"
    size = network_size(genotype)
    yield from ("", "size with 36 channels, 20 cells and images of CIFAR-10")
    yield f"  {size.weights:,} weights, {size.weights_with_head:,} with the auxiliary head"
    yield f"  {size.multiply_adds:,} multiply-adds per image"


def difference(before: Genotype, after: Genotype) -> list[str]:
    """List the edges and outputs that only one genotype has, per cell and node: '-' for the first, '+' the second."""
    lines = []
    for cell, name in CELLS.items():
        old, new = _edges_of_nodes(before, cell), _edges_of_nodes(after, cell)
        for node in sorted(old | new):
            gone, come = old.get(node, Counter()), new.get(node, Counter())
            if gone != come:
                lines.append(f"{name}, {_state(node)}")
                for sign, edges in (("-", gone - come), ("+", come - gone)):
                    lines += [f"{sign} {_state(source):>7} --{kind}-->" for source, kind in sorted(edges.elements())]
        gone, come = getattr(before, f"{cell}_concat"), getattr(after, f"{cell}_concat")
        if gone != come:
            lines.append(f"{name}, c_{{k}}")
            lines += [f"{sign} {', '.join(map(_state, nodes))}" for sign, nodes in (("-", gone), ("+", come))]
    return lines


def _state(state: int) -> str:
    inputs = DARTS.num_inputs
    return f"c_{{k-{inputs - state}}}" if state < inputs else f"node {state - inputs}"


def _edges_of_nodes(genotype: Genotype, cell: str) -> dict[int, Counter]:
    """Count for each node how often it has an edge of a source and a primitive."""
    nodes = DARTS.by_node(getattr(genotype, cell))
    return {node: Counter((source, primitive) for primitive, source in edges) for node, edges in nodes}
