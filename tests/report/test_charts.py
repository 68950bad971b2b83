"""Pictures are drawn without a word of matplotlib."""

import subprocess
import sys

import pytest

PROGRAM = """
from mlxhog.report import charts
figure, axes = charts.panel(charts.LIGHT)
charts.title(axes, charts.LIGHT, "\\u6587 \\u0e01")
assert charts.png(figure).startswith(b"\\x89PNG")
"""


@pytest.mark.slow
def test_a_title_in_another_script_and_a_new_cache_are_drawn_without_a_warning(tmp_path):
    (tmp_path / "file").touch()
    environment = {"MPLCONFIGDIR": str(tmp_path / "file" / "cache"), "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c",
         PROGRAM],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
