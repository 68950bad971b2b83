"""The notebook of `examples/` runs, on less text and with a shorter budget."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_week.ipynb"

# The client of a kernel warns of what its own packages do.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Its code cells with what they have shown."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (budget,) = [cell for cell in notebook.cells if "time=6, " in cell.source]
    budget.source = budget.source.replace("time=6, ", "steps=20, data='text', threads=1, ")
    folder = tmp_path_factory.mktemp("notebook")
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


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
