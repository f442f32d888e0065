"""The table of cells that were trained shortly, what it says, and its place in a genotype file."""

import json
import math
import re

import numpy as np
import pytest
from pydantic import ValidationError

from nas.errors import InputError
from nas.genotypes import main
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import MAX_CANDIDATES, Candidate, GenotypeFile, Provenance
from nas.selection import ranking
from nas.selection.cells import key


def candidate(accuracy, seeds=(), random_seeds=(), loss=1.0, balanced=None):
    return Candidate(
        seeds=seeds,
        random_seeds=random_seeds,
        genotype=Genotype.random(0).to_text(),
        weights=1_234_567,
        multiply_adds=8_900_000,
        supernet_accuracies=tuple(0.5 for _ in seeds),
        holdout_accuracy=accuracy,
        holdout_loss=loss,
        holdout_balanced_accuracy=balanced,
    )


ROWS = [candidate(0.92, (0, 2)), candidate(0.91, (), (1,)), candidate(0.9, (1,), (0,)), candidate(0.8, (), (2,))]


def test_cells_that_differ_in_the_order_of_a_nodes_edges_are_the_same():
    genotype = Genotype.random(5)
    content = genotype.model_dump()
    swapped = Genotype(**content | {"reduce": content["reduce"][1::-1] + content["reduce"][2:]})
    assert swapped != genotype
    assert key(swapped) == key(genotype)
    assert key(Genotype.random(6)) != key(genotype)
    shifted = Genotype(**content | {"reduce_concat": content["reduce_concat"][1:]})
    assert key(shifted) != key(genotype)


def test_the_table_names_all_that_led_to_a_cell():
    assert ranking.table(ROWS) == [
        "cell              held out   loss      supernet  weights  mult-adds",
        "seed 0, 2          92.00 %  1.000  50.0%, 50.0%  1.235 M      8.9 M",
        "random 1           91.00 %  1.000             -  1.235 M      8.9 M",
        "seed 1; random 0   90.00 %  1.000         50.0%  1.235 M      8.9 M",
        "random 2           80.00 %  1.000             -  1.235 M      8.9 M",
    ]
    twice = candidate(0.9, (), (1,)).model_copy(update={"scores": (0.89, 0.91), "runner_up_seeds": (4,)})
    assert ranking.table([twice])[1].startswith("runner-up of seed 4; random 1  90.00 ± 1.41 %  1.000")


def test_the_verdict_counts_a_cell_as_often_as_it_was_found():
    searches, drawn, conclusion = ranking.verdict(ROWS)
    assert searches == "searches: mean 91.33 ± 1.15 % accuracy on held-out images (of 3), best 92.00 %"
    assert drawn == "random cells: mean 87.00 ± 6.08 % accuracy on held-out images (of 3), best 91.00 %"
    assert conclusion == (
        "Searched cells are 4.33 points better than random ones on your images; this may be chance, as there are fewer "
        "than 4 of each kind."
    )


def several(first, step, **more):
    """Four cells of one kind, each better than the one before."""
    return [candidate(first + index * step, **dict.fromkeys(more, (index,))) for index in range(4)]


@pytest.mark.parametrize(
    ("searched", "drawn", "said"),
    [
        (
            0.9,
            0.8,
            r"are 10\.00 points better than random ones on your images; 95 % interval \+9\.\d\d to \+10\.\d\d po",
        ),
        (
            0.8,
            0.9,
            r"are 10\.00 points worse than random ones on your images; 95 % interval -10\.\d\d to -9\.\d\d points\.",
        ),
        (
            0.9,
            0.9,
            r"are as good as random ones on your images, which may be chance: 95 % interval -0\.\d\d to \+0\.\d\d po",
        ),
        (
            0.9,
            0.899,
            r"are 0\.10 points better than .* images, which may be chance: 95 % interval -0\.\d\d to \+0\.\d\d po",
        ),
    ],
)
def test_the_conclusion_says_whether_chance_may_be_the_reason(searched, drawn, said):
    rows = [*several(searched, 0.002, seeds=1), *several(drawn, 0.002, random_seeds=1)]
    conclusion = ranking.verdict(rows)[-1]
    assert re.search(said, conclusion)
    assert ranking.verdict(rows)[-1] == conclusion  # the same draws each time


def test_the_interval_is_as_wide_as_that_of_a_normal_distribution():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.9, 0.01, 40), rng.normal(0.89, 0.02, 50)
    rows = [candidate(score, (index,)) for index, score in enumerate(first)]
    rows += [candidate(score, (), (index,)) for index, score in enumerate(second)]
    low, high = map(float, re.findall(r"[+-]\d\.\d\d", ranking.verdict(rows)[-1]))
    error = 100 * math.sqrt(first.var(ddof=1) / 40 + second.var(ddof=1) / 50)
    middle = 100 * (first.mean() - second.mean())
    assert [low, high] == pytest.approx([middle - 1.96 * error, middle + 1.96 * error], abs=0.2 * error)


def test_one_cell_that_all_searches_found_cannot_rule_out_chance():
    assert ranking.verdict(ROWS[:1]) == [
        "searches: mean 92.00 ± 0.00 % accuracy on held-out images (of 2), best 92.00 %"
    ]
    once = [candidate(0.92, (0, 1, 2, 3)), *several(0.8, 0.001, random_seeds=1)]  # found four times, trained once
    assert "this may be chance" in ranking.verdict(once)[-1]


def test_where_each_class_is_drawn_as_often_the_balanced_accuracy_counts():
    rows = [candidate(0.5, (0,), balanced=0.9), candidate(0.95, (), (0,), balanced=0.5)]
    header, first, _ = ranking.table(rows)
    assert header.split()[:3] == ["cell", "balanced", "loss"]
    assert first.split()[:3] == ["seed", "0", "90.00"]
    assert (
        ranking.verdict(rows)[0] == "searches: mean 90.00 % balanced accuracy on held-out images (of 1), best 90.00 %"
    )
    assert "Searched cells are 40.00 points better than random ones" in ranking.verdict(rows)[2]


def test_the_table_is_kept_in_a_genotype_file(tmp_path, capsys):
    provenance = Provenance(method="nas search, onestage", candidates=tuple(ROWS))
    Genotype.random(1).save(tmp_path / "cell.json", provenance)
    assert GenotypeFile.load(tmp_path / "cell.json").provenance == provenance
    assert main(["show", str(tmp_path / "cell.json")]) == 0
    out = capsys.readouterr().out
    assert "  candidates: 4 cells; this is the best cell that a search found\n" in out
    assert "holdout" not in out


@pytest.mark.parametrize(
    ("spoilt", "complaint"),
    [
        ({"holdout_accuracy": 1.5}, "holdout_accuracy: must be less than or equal to 1"),
        ({"holdout_loss": -1.0}, "holdout_loss: must be greater than or equal to 0"),
        ({"seeds": list(range(MAX_CANDIDATES + 1))}, "seeds: Tuple must have at most 400 items"),
        ({"weights": True}, "weights: must be a valid integer"),
        ({"weights": 10**30}, "weights: must be less than"),
        ({"genotype": "__import__('os')"}, "genotype: "),
        ({"genotype": "x" * 10_001}, "genotype: String must have at most 10000 characters"),
        ({"extra": 1}, "extra: unknown field"),
    ],
)
def test_hostile_tables_are_refused_in_one_sentence(tmp_path, spoilt, complaint):
    path = tmp_path / "cell.json"
    Genotype.random(1).save(path, Provenance(candidates=tuple(ROWS)))
    content = json.loads(path.read_text())
    content["provenance"]["candidates"][1] |= spoilt
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        GenotypeFile.load(path)
    assert f"provenance.candidates[1].{complaint}" in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_a_table_has_an_end():
    with pytest.raises(ValidationError, match="at most 400 items"):
        Provenance(candidates=tuple(ROWS[:1] * (MAX_CANDIDATES + 1)))
