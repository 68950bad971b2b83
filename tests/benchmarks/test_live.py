"""The benchmark of live readers: its parts run, and say what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxhog.live import READ_MODES

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "live.py"


def measured(*flags: str) -> Any:
    command = [sys.executable, str(SCRIPT), "--quick", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_reads_of_every_mode_are_counted_and_checked() -> None:
    line = measured("--only=promises", "--reads=100")
    assert set(line["promises"]) == set(READ_MODES)
    assert [claim["value"] for claim in line["claims"]] == [0] * len(READ_MODES)
    assert all(row["reads"] == 100 for row in line["promises"].values())
