"""The notebooks of `examples/` run, on less text and with shorter budgets."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"

# The client of a kernel warns of what its own packages do.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Its code cells with what they have shown."""
    text = "steps=20, data='text', threads=1, "
    return executed("first_week", {"time=6, ": text}, tmp_path_factory.mktemp("notebook"))


def executed(name, shorter, folder):
    """The code cells of a notebook, run with other budgets in a folder that has some text."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    for budget, other in shorter.items():
        (cell,) = [cell for cell in notebook.cells if budget in cell.source]
        cell.source = cell.source.replace(budget, other)
    (folder / "text").mkdir()
    for number in range(12):
        text = f"The people of river {number} go to sea. " * 50
        (folder / "text" / f"{number}.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
        client = NotebookClient(
            notebook, timeout=240, startup_timeout=240, kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )  # fmt: skip
        client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cells, source):
    """The outputs of the cell that begins so."""
    (cell,) = (cell for cell in cells if cell.source.startswith(source))
    return list(cell.outputs)


def printed(cells, source):
    return "".join(output.text for output in shown(cells, source) if output.name == "stdout")


@pytest.mark.slow
def test_training_shows_one_table(cells):
    (output,) = shown(cells, "result = mlxhog.train(")
    assert output.output_type == "display_data"
    assert "mlx:cpu" in output.data["text/plain"]
    assert "bits/byte" in output.data["text/html"]
    assert printed(cells, "print(result.status").startswith("done ")


@pytest.mark.slow
def test_the_model_writes_streams_and_scores(cells):
    (output,) = shown(cells, "model = mlxhog.load(")
    assert "first-week" in output.data["text/plain"]
    assert printed(cells, "print(model.generate(")
    assert printed(cells, "for piece in model.stream(")
    first, second = printed(cells, "for text in").splitlines()
    assert float(first.split()[0]) < float(second.split()[0])
    assert printed(cells, "import numpy").startswith("(11, 320) ")


@pytest.mark.slow
def test_a_resumed_run_is_shown_by_an_observer(cells):
    assert printed(cells, "losses = []").startswith("10 steps more")


@pytest.mark.slow
def test_a_search_is_plotted_deepened_and_its_winner_trained(tmp_path):
    small = {"prune=False": "prune=False, steps=20", "time=10": "steps=3, data='text', threads=1"}
    cells = executed("search", small, tmp_path)
    assert printed(cells, "for candidate in study").count("parameters") == 2
    assert any("image/png" in one.get("data", {}) for one in shown(cells, "import matplotlib"))
    assert printed(cells, "print(result.status").startswith("done 3 steps")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
