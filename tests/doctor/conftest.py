"""What `mlxhog doctor` says of this machine, once for all tests that read it."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mlxhog.cli import main
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.host.translate import CONSUMERS
from tests.metal.compiled import compile_all


@pytest.fixture(scope="package")
def environ(
    host_engine: Callable[..., HostEngine],
    shim_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """The environment of a command that finds compiled kernels in its cache."""
    compile_all({consumer: host_engine(consumer) for consumer in CONSUMERS})
    cache: Path = tmp_path_factory.mktemp("cache")
    (cache / "mlxhog").mkdir()
    (cache / "mlxhog" / "metal").symlink_to(shim_cache)
    return os.environ | {"XDG_CACHE_HOME": str(cache)}


@pytest.fixture(scope="package")
def record(environ: dict[str, str]) -> dict[str, Any]:
    """What `mlxhog doctor --quick --json` prints, which is all it prints."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, environ), redirect_stdout(out), redirect_stderr(err):
        code = main(["doctor", "--quick", "--json"])
    assert code == 0, err.getvalue() + out.getvalue()
    assert re.findall(r"^(\d) of 9: .+ \.\.\.$", err.getvalue(), re.M) == list("123456789")
    record: dict[str, Any] = json.loads(out.getvalue())
    return record
