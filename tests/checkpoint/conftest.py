"""A run without a checkpoint."""

import pytest

from mlxhog.checkpoint import run as runs


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs", "test")
