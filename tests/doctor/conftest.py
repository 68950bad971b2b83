"""What `mlxhog doctor` says of this machine, once for all tests that read it."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest

from mlxhog.cli import main


@pytest.fixture(scope="package")
def record():
    """What `mlxhog doctor --quick --json` prints, which is all it prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["doctor", "--quick", "--json"])
    assert code == 0, err.getvalue() + out.getvalue()
    assert re.findall(r"^(\d) of 6: .+ \.\.\.$", err.getvalue(), re.M) == list("123456")
    record = json.loads(out.getvalue())
    return record
