"""Each family of strategies in a user's program, with workers that are spawned as a user's."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.small import small_config

FAMILIES = {
    "lock-free": {"strategy": "hogwild"},
    "synchronous": {"strategy": "sync"},
    "local": {"strategy": "local_sgd", "average_every": 4},
}
PROGRAM = """
import json, sys
import mlxhog

for options in json.load(sys.stdin):
    result = mlxhog.train(**options)
    workers = [worker.steps for worker in result.workers]
    print(json.dumps([result.status, result.steps, result.restarts, workers]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of runs of all families, one after the other in one program."""
    folder = tmp_path_factory.mktemp("teams")
    config = small_config(folder)
    common = {
        "model": config.model, "data": config.data, "out": config.out, "workers": "mlx:cpu*2",
        "threads": 1, "seq_len": 32, "batch_size": 2, "eval_every": "off", "sample_every": "off",
        "steps": 12,
    }  # fmt: skip
    (folder / "program.py").write_text(PROGRAM)
    process = subprocess.run(
        [sys.executable, "program.py"],
        input=json.dumps([{**common, **options} for options in FAMILIES.values()]),
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    lines = map(json.loads, process.stdout.splitlines())
    return dict(zip(FAMILIES, lines, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_spawned_workers_train_together_to_the_last_step(results, family):
    status, steps, restarts, workers = results[family]
    assert (status, steps, restarts) == ("done", 12, 0)
    assert len(workers) == 2
