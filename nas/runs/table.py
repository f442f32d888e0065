"""The table of the cells of several searches, as a file of the run folder keeps it."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas import files
from nas.errors import InputError, first_problem, printable
from nas.search_space.genotype_file import Candidate

TABLE_VERSION = 1


class Table(BaseModel):
    """The content of a table.json: the cells, the best one first, and what they say about the searches."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Annotated[int, Field(ge=1, le=TABLE_VERSION)] = TABLE_VERSION
    cells: Annotated[tuple[Candidate, ...], Field(min_length=1)]
    verdict: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "Table":
        """Read a table.

        Raises:
            InputError: the file cannot be read or is damaged; it is named.
        """
        data = files.read_json(path, "table", TABLE_VERSION)
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InputError(f"table {path}: {first_problem(error)}") from None

    def save(self, path: Path) -> None:
        """Write the table in one step."""
        files.write_json(path, self.model_dump())

    @property
    def conclusion(self) -> str | None:
        """The sentence on whether the searches beat chance; None without random cells."""
        return self.verdict[-1] if self.verdict and any(row.random_seeds for row in self.cells) else None


def sources(row: Candidate) -> str:
    """Return where a cell comes from, such as "seed 0, 2; random 1; DARTS_V2"."""
    drawn = {"seed": row.seeds, "runner-up of seed": row.runner_up_seeds, "random": row.random_seeds}
    found = [f"{what} {', '.join(map(str, them))}" for what, them in drawn.items() if them]
    return "; ".join([*found, *(printable(name, 40) for name in row.names)])
