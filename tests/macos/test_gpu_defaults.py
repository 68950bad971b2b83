"""Defaults of GPU workers in a simulated macOS: the batch, and the watchdog of Apple's driver."""

import json

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
