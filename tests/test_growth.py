from benchmarks import growth


def results(seconds, peak):
    """What `compare` gives, for a step whose figures are those functions of (channels, cells, batch)."""
    sizes = {
        tuple((growth.BASE | {axis: size}).values()) for axis, all_sizes in growth.AXES.items() for size in all_sizes
    }
    rows = []
    for size in sorted(sizes):
        form = {"median_s": seconds(*size), "peak_bytes": peak(*size), "ratio": 1.0, "peak_ratio": 1.0}
        half = form | {"median_s": form["median_s"] / 2, "ratio": 2.0}
        rows.append(dict(zip(growth.BASE, size, strict=True)) | {"forms": {"textbook": form, "product": half}})
    return rows


ROWS = results(lambda c, n, b: 1e-4 * c**1.5 * n * b**0.9, lambda c, n, b: 1e6 * c * n**1.2 * b)


def test_table_has_a_row_a_size_and_the_exponents_of_the_law():
    sizes, exponents = (part.splitlines()[2:] for part in growth.table(ROWS).split("\n\n"))
    assert len(sizes) == len(ROWS) == 8
    assert exponents == [
        "| init channels | 1.50 | 1.50 | 1.00 | 1.00 |",
        "| num cells | 1.00 | 1.00 | 1.20 | 1.20 |",
        "| batch size | 0.90 | 0.90 | 1.00 | 1.00 |",
    ]


def test_the_figure_is_the_same_for_the_same_results(tmp_path):
    for name in "ab":
        growth.figure(ROWS, tmp_path / f"{name}.svg")
    content = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert content == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert content.count("product, exponent 0.90") == 1
    for axis in growth.AXES:
        assert axis.replace("_", " ") in content
