"""A run without a checkpoint."""

import pytest

from mlxhog.checkpoint import new_run


@pytest.fixture
def run(tmp_path):
    return new_run.create(tmp_path / "runs", "test")
