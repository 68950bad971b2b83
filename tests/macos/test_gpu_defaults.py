"""Defaults of GPU workers in a simulated macOS: the batch, and the watchdog of Apple's driver."""

import json
import re

import pytest

from tests.macos.simulation import linux_only, simulated

pytestmark = linux_only

TRAIN = """
import json, sys
from pathlib import Path
from mlxhog.training.run import train
from tests.training.small import small_config
if __name__ == "__main__":
    pids, messages = set(), []
    def observer(progress):
        pids.update(worker.pid for worker in progress.workers if worker.pid)
        messages.append(progress.message or "")
    config = small_config(Path(sys.argv[1]), workers="mlx:gpu", batch_size="auto", steps=3, time=16)
    result = train(config, observer=observer)
    status = json.loads((Path(result.run) / "run.json").read_text())
    said = [one for one in messages if one.startswith("batch_size auto")]
    print(json.dumps([sorted(pids), status["batch_size"], result.tokens, said]))
"""


@pytest.mark.slow
def test_a_gpu_worker_trains_with_a_measured_batch(tmp_path):
    log = tmp_path / "log"
    printed = simulated(TRAIN, tmp_path, FAKE_METAL=1, FAKE_MLX_LOG=log)
    pids, batch, tokens, (line,) = json.loads(printed.splitlines()[-1])
    assert len(batch["tokens_per_s"]) > 0
    assert tokens == 3 * 32 * batch["sequences"]
    assert line.startswith(f"batch_size auto: {batch['sequences']} sequence")
    asked = dict(row.split() for row in log.read_text().splitlines())
    assert pids
    assert {asked[str(pid)] for pid in pids} == {"1"}, "workers ask for more time on the GPU"
    assert list(asked.values()).count("1") >= 2, "and the process that measures"


TOO_LARGE = """
import sys
from pathlib import Path
from mlxhog.errors import EnvironmentLacks
from mlxhog.training import memory
from mlxhog.training.plan import make_plan
from tests.training.small import small_config
if __name__ == "__main__":
    memory.SURELY_RECOMMENDED = 0.0  # the stand-in has a smaller part of the memory than on a Mac
    for batch_size in sys.argv[2:]:
        try:
            make_plan(small_config(Path(sys.argv[1]), workers="mlx:gpu", batch_size=batch_size))
        except EnvironmentLacks as refusal:
            print(refusal)
"""


@pytest.mark.slow
def test_a_batch_beyond_the_working_set_is_refused_with_the_largest_that_fits(tmp_path):
    (line,) = simulated(TOO_LARGE, tmp_path, 1_000_000, FAKE_METAL=1).splitlines()
    assert "and a worker has 6.0 GiB (0.75 of the recommended memory, divided" in line
    largest = int(re.search(r"largest batch that fits is (\d+) \(--batch-size \1\)", line)[1])
    (line,) = simulated(TOO_LARGE, tmp_path, largest, largest + 1, FAKE_METAL=1).splitlines()
    assert f"batch_size is {largest + 1}" in line
