"""The notebook of docs/, run as Jupyter runs it: in its own folder of a checkout."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The outputs of each code cell, and the checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "docs").mkdir()
    for script in ("search.py", "train_final.py"):
        shutil.copy(ROOT / script, checkout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(variable, str(checkout / variable))
        where = {"metadata": {"path": checkout / "docs"}}
        NotebookClient(NOTEBOOK, timeout=120, coalesce_streams=True, resources=where).execute()
    return [cell.outputs for cell in NOTEBOOK.cells if cell.cell_type == "code"], checkout


def text(outputs, name="stdout"):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == name)


def data(outputs, kind):
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def test_the_file_is_short_and_holds_no_outputs():
    stored = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    nbformat.validate(stored)
    assert 6 <= len(stored.cells) <= 10
    assert not any(cell.outputs or cell.execution_count for cell in stored.cells if cell.cell_type == "code")


def test_a_search_and_a_training_have_one_bar_each_that_is_replaced_and_full_at_the_end(shown):
    (_, searched, _, trained, _), _ = shown
    for outputs, last in ((searched, "4/4"), (trained, "60/60")):
        (bar,) = [html for html in data(outputs, "text/html") if " step " in html]
        assert re.search(rf"{last}</span> .*0:00:00.* left; ", bar)
        assert "epoch 2/" in text(outputs)
        assert not re.search(r"\x1b|━|step \d+ of", text(outputs)), "the bar is not among the lines"
        assert text(outputs, "stderr") == ""


def test_the_runs_show_their_cells_and_curves_and_the_network_what_it_sees(shown):
    (_, _, searched, trained, predicted), checkout = shown
    for outputs, kind in ((searched, "search, 2 of 2 epochs"), (trained, "final training, 6 of 6 epochs")):
        run = data(outputs, "text/html")[-1]
        assert f": {kind}, finished, " in run
        assert run.count("<svg") == 2
    assert [len(data(outputs, "image/png")) for outputs in (searched, trained, predicted)] == [1, 1, 1]
    assert text(predicted) in {f"{digit}\n" for digit in range(10)}
    assert {path.name for path in checkout.iterdir()} >= {"runs", "genotypes"}, "the first cell has gone to the root"
