"""The benchmark of live readers: its parts run, and say what they measured."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from mlxhog.live import READ_MODES
from tests import forked
from tests.live import patterns

pytestmark = pytest.mark.slow


def test_reads_of_every_mode_are_counted_and_checked(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if sys.platform == "linux":
        monkeypatch.setattr(patterns, "SPAWN", forked.CONTEXT)
    words = ["live.py", "--quick", "--only=promises", "--reads=100"]
    monkeypatch.setattr(sys, "argv", words)
    assert load("live").main() in (0, 3)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(line["promises"]) == set(READ_MODES)
    assert [claim["value"] for claim in line["claims"]] == [0] * len(READ_MODES)
    assert all(row["reads"] == 100 for row in line["promises"].values())
