"""Backends on a Mac: two devices in one process, and the threads that ask for performance cores."""

import json

import pytest

from tests.macos.simulation import linux_only, simulated

pytestmark = linux_only

BOTH_DEVICES = """
import mlx.core as mx
import numpy as np
from mlxhog import backends
from mlxhog.cli.generate import EvalConfig, GenerateConfig
from mlxhog.config.options import options
from mlxhog.live.model import load
from mlxhog.live.serving.config import ServeConfig
from mlxhog.models import lm
from mlxhog.models.families import init_params
from tests.models.sample import SMALLEST

logits_of, devices = lm.logits, []
def noted(*arguments, **keywords):
    devices.append(mx.default_device())
    return logits_of(*arguments, **keywords)
lm.logits = noted
limits = []
mx.set_cache_limit = limits.append

ids = np.ones((1, 3), np.int32)
loaded = [backends.create_alone(word) for word in ("mlx:cpu", "auto", "mlx:cpu", "mlx")]
for backend in loaded:
    backend.load(SMALLEST, init_params(SMALLEST, 0))
logits = [backend.logits(ids, None)[0] for backend in loaded]
assert len(limits) == 4 and max(limits) <= 1 << 30, "arrays of the CPU are Metal's, too"
assert all(np.allclose(logits[0], each, atol=1e-5) for each in logits)
print(*(backend.name for backend in loaded), *("gpu" if d == mx.gpu else "cpu" for d in devices))
assert mx.default_device() == mx.gpu, "that of the program that uses mlxhog"

words = [options(config)["backend"].default for config in (ServeConfig, GenerateConfig, EvalConfig)]
words.append(load.__kwdefaults__["backend"])
print({backends.create_alone(word).name for word in words})
"""


@pytest.mark.slow
def test_backends_on_both_devices_work_in_one_process_and_commands_choose_the_gpu():
    printed = simulated(BOTH_DEVICES, FAKE_METAL=1)
    both = "mlx:cpu mlx:gpu mlx:cpu mlx:gpu cpu gpu cpu gpu"
    assert printed.splitlines() == [both, "{'mlx:gpu'}"]


ASKING = """
import json, os, sys, threading
from pathlib import Path
from mlxhog import load
from mlxhog.arena.child import Child
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.run import train
from mlxhog.live.serving.config import ServeConfig
from mlxhog.live.serving.engine_thread import EngineThread
from mlxhog.mad.training import candidate
from tests.classic.small import hinge
from tests.mad.training.small_runs import small_run
from tests.saved import saved_run

def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return thread.native_id

if __name__ == "__main__":
    out, log = Path(sys.argv[1]), Path(os.environ["FAKE_QOS_LOG"])
    saved_run(out)
    asked = {}
    with Child() as child:  # of doctor and parity
        child.call(60, repr)
        asked["child"] = child.pid
    train(hinge(), ClassicConfig(workers=2))
    engine = EngineThread("latest", ServeConfig(out=str(out)))
    engine.wait()
    asked["serve"] = engine._thread.native_id
    engine.stop()
    asked["generate"] = in_thread(lambda: load(out=out).generate(max_new_tokens=1))
    asked["mad"] = in_thread(lambda: candidate.train(small_run()))
    print(json.dumps([os.getpid(), asked]))
"""


@pytest.mark.slow
def test_every_thread_that_computes_asks_for_performance_cores(tmp_path):
    log = tmp_path / "qos"
    own, asked = json.loads(simulated(ASKING, tmp_path / "runs", FAKE_QOS_LOG=log).splitlines()[-1])
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert asked["child"] in {pid for pid, _ in lines}
    assert {asked[name] for name in ("serve", "generate", "mad")} <= {
        thread for pid, thread in lines if pid == own
    }
    children = {pid for pid, thread in lines if pid == thread != own}
    assert len(children) == 3, "the child, and two workers of a classic problem"
