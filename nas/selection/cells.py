"""The cells that are compared: those that searches found, random ones and given ones."""

from dataclasses import dataclass, field
from pathlib import Path

from nas.config.file import searched_space
from nas.config.flags import SearchConfig
from nas.errors import InputError, printable
from nas.report.run_data import read_run
from nas.search_space import reader
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import SPACES, GenotypeFile, Provenance


@dataclass
class Cell:
    """A cell to be trained briefly.

    Attributes:
        genotype: the cell, as the first search or draw gave it.
        file: the genotype file of that search or draw.
        seeds: seeds of the searches that found it.
        runner_up_seeds: seeds of the searches by whose edge weights it is likely, but not the likeliest cell.
        random_seeds: seeds of the random draws that gave it.
        names: how --candidates gave it.
        supernet_accuracies: accuracies of the supernets of the searches that found it.
    """

    genotype: Genotype
    file: Path
    seeds: list[int] = field(default_factory=list)
    runner_up_seeds: list[int] = field(default_factory=list)
    random_seeds: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    supernet_accuracies: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the cell after its first search or its file, such as seed3, random0 or candidate1."""
        return f"seed{self.seeds[0]}" if self.seeds else self.file.stem


def key(genotype: Genotype) -> object:
    """Return what is equal for cells that differ only in the order of a node's edges, which means nothing."""
    space = genotype.space
    cells = [tuple(tuple(sorted(edges)) for _, edges in space.by_node(genotype.edges(kind))) for kind in space.cells]
    return (space.name, *cells, *map(genotype.concat, space.cells))


def seeds(config: SearchConfig) -> range:
    """Return the seeds of the searches."""
    return range(config.run.seed, config.run.seed + config.selection.searches)


def search_name(config: SearchConfig, seed: int) -> str:
    """Return the name of a search's run folder, and of the genotype that it exports."""
    return f"{config.run.name}-seed{seed}"


def distinct_cells(config: SearchConfig, path: Path) -> list[Cell]:
    """Return the cells of all searches, the random ones and the given ones, each once; they have files then.

    Raises:
        InputError: a file in the run folder is damaged; it is named.
    """
    cells: dict[object, Cell] = {}

    def add(genotype: Genotype, file: Path) -> Cell:
        return cells.setdefault(key(genotype), Cell(genotype, file))

    for seed in seeds(config):
        file = path / search_name(config, seed) / "genotype.json"
        found = GenotypeFile.load(file)
        cell = add(Genotype(**found.cells()), file)
        cell.seeds.append(seed)
        if found.provenance.supernet_accuracy is not None:
            cell.supernet_accuracies.append(found.provenance.supernet_accuracy)
    if config.selection.derive_top > 1:  # after all that are the likeliest ones of a search, which give the names
        for seed in seeds(config):
            for genotype, file in _runners_up(config, path, search_name(config, seed)):
                add(genotype, file).runner_up_seeds.append(seed)
    for seed in range(config.run.seed, config.run.seed + config.selection.random_baseline):
        file = path / f"random{seed}.json"
        genotype = Genotype.random(seed, config.supernet.num_nodes, SPACES[config.supernet.space])
        genotype.save(file, Provenance(method="random", seed=seed))
        add(genotype, file).random_seeds.append(seed)
    for source, file in candidate_files(config, path).items():
        add(Genotype.load(file), file).names.append(printable(source, 100))
    return list(cells.values())


def _runners_up(config: SearchConfig, path: Path, name: str) -> list[tuple[Genotype, Path]]:
    """Return the likeliest cells of a search but for the first one, with their files."""
    first = GenotypeFile.load(path / name / "genotype.json")
    genotype, run = Genotype(**first.cells()), read_run(path / name)
    if Genotype.from_text(run["genotype"]) != genotype:
        raise InputError(f"{path / name}: genotype.json is not the cell that the search found; move the folder away.")
    space, number = genotype.space, config.selection.derive_top
    weights = {kind: run["edge_weights"][kind][-1] for kind in space.cells}
    concats = {f"{kind}_concat": genotype.concat(kind) for kind in space.cells}
    found = []
    for cells in searched_space(config.supernet).likeliest(weights, number):
        likely = Genotype(space=space, **cells, **concats)
        if key(likely) != key(genotype) and len(found) < number - 1:  # weights that are alike may hide the first one
            file = path / f"{name.rpartition('-')[2]}-likely{len(found) + 2}.json"
            likely.save(file, first.provenance)
            found.append((likely, file))
    return found


def read_candidate(source: str, config: SearchConfig) -> GenotypeFile:
    """Read a cell of --candidates.

    Raises:
        InputError: it cannot be read, or is of another search space.
    """
    try:
        file = reader.read(source).file
    except InputError as error:
        raise InputError(f"--candidates: {error}") from None
    space = Genotype(**file.cells()).space
    if space.name != config.supernet.space:
        raise InputError(
            f"--candidates {printable(source, 100)}: a cell of --space {space.name}, but this search is in "
            f"{config.supernet.space}."
        )
    return file


def candidate_files(config: SearchConfig, path: Path) -> dict[str, Path]:
    """Return the file of each cell of --candidates in the run folder, which is written where it is missing."""
    files_of = {}
    for number, source in enumerate(config.selection.candidates or ()):
        files_of[source] = file = path / f"candidate{number}.json"
        if not file.exists():
            given = read_candidate(source, config)
            Genotype(**given.cells()).save(file, given.provenance)
    return files_of
