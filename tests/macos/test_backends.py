"""Backends on a simulated Mac: both devices in a process, and arrays that native code refuses."""

import json

import pytest

from tests.macos.simulation import linux_only, simulated

pytestmark = [linux_only, pytest.mark.slow]

BOTH_DEVICES = """
import mlx.core as mx
import numpy as np
from mlxhog import backends
from mlxhog.cli.eval import EvalConfig
from mlxhog.cli.generate import GenerateConfig
from mlxhog.config.options import options
from mlxhog.serving.model import load
from mlxhog.serving.server.config import ServeConfig
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
print(*(backends.create_alone("auto", n).name for n in (2_500_000, 400_000_000)),
      backends.create_alone("mlx", 2_500_000).name)
"""


def test_both_devices_work_in_one_process_and_auto_writes_text_of_small_models_on_the_cpu():
    printed = simulated(BOTH_DEVICES, FAKE_METAL=1)
    both = "mlx:cpu mlx:gpu mlx:cpu mlx:gpu cpu gpu cpu gpu"
    assert printed.splitlines() == [both, "{'mlx:gpu'}", "mlx:cpu mlx:gpu mlx:gpu"]


ASKING = """
import json, os, sys, threading
from pathlib import Path
from mlxhog import load
from mlxhog.arena.child import Child
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.run import train
from mlxhog.serving.server.config import ServeConfig
from mlxhog.serving.server.served_model import ServedModel
from mlxhog.mad.training import candidate
from tests.research.classic.small import hinge
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
        child.call(120, repr)
        asked["child"] = child.pid
    train(hinge(), ClassicConfig(workers=2))
    served = ServedModel("latest", ServeConfig(runs_dir=str(out)))
    asked["serve"] = served._thread.submit(threading.get_native_id).result()
    served.close()
    asked["generate"] = in_thread(lambda: load(runs_dir=out).generate(max_new_tokens=1))
    asked["mad"] = in_thread(lambda: candidate.train(small_run()))
    print(json.dumps([os.getpid(), asked]))
"""


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


TRAIN_AND_WRITE = """
import json, sys
from pathlib import Path
from mlxhog import load, train
from mlxhog.decoding.options import Sampling
from tests.training.small import mixed_model, small_config

folder, family, overlap = Path(sys.argv[1]), sys.argv[2], bool(sys.argv[3])
model = {"model": mixed_model(folder)} if family == "xlstm_v1" else {}
often = {"eval_every": "10", "sample_every": "10", "save_every": "10"}
config = small_config(folder, steps=30, workers="auto", overlap=overlap, **often, **model)
result = train(config)
assert (result.status, result.restarts, result.steps) == ("done", 0, 30), result
assert [w.backend for w in result.workers] == ["mlx:gpu", "mlx:cpu", "mlx:cpu"], result.workers
notices = json.loads((Path(result.run) / "run.json").read_text())["notices"]
assert any("uses the eager mlx operators" in notice for notice in notices), notices
written = load("latest", runs_dir=folder / "runs", backend="mlx:cpu")
for prompts in (["lock"], ["lock", "free"]):
    assert [*written.answer(prompts, Sampling(temperature=1.0, max_new_tokens=4))]
"""

MAD = """
from mlxhog.mad.training.candidate import train
from mlxhog.models.layers import known
from tests.mad.training.small_runs import small_run

found = train(small_run(layers=" ".join(known()), dim=32, workers="mlx:cpu"))
assert found.status == "done", found
"""

COMPARE = """
from tests.models.recorded import SIDES, disagreements

for name in ("large_d_fused", "v1_mixed_02"):
    assert not (wrong := list(disagreements(name, SIDES["mlx-native"]))), wrong
"""

ANALYZE = """
import sys
from pathlib import Path
from mlxhog.arena.child import Child
from mlxhog.research.analysis.analyze import tickets
from mlxhog.research.analysis.conflicts import measure
from tests.research.analysis.test_sampling import subject

sampled = subject(Path(sys.argv[1]), backend="mlx:cpu")
with Child() as child:
    drawn = tickets(sampled.plan.batches().n_tickets, 24, 0)
    assert len(measure(child, sampled, drawn, lambda *step: None).norms) == 24
"""

LINEARS = """
import mlx.core as mx
from mlxhog.models.ops.native import adapter_mlx

adapter_mlx.FAST_GEMM = True  # as on Linux
x, w, b = mx.ones((2, 3, 4)), mx.ones((5, 4)), mx.ones(5)
d_w = mx.grad(lambda w: adapter_mlx.OPS.linears(x, [w, w], [b, None])[0].sum())(w)
assert mx.array_equal(d_w, mx.full((5, 4), 6.0))
labels = mx.zeros(6, mx.int32)
adapter_mlx.OPS.linear_cross_entropy(x.reshape(6, 4), w, labels, None)
"""


@pytest.mark.parametrize(("family", "overlap"), [("xlstm", ""), ("xlstm_v1", "overlap")])
def test_the_default_workers_train_evaluate_and_write_text(tmp_path, family, overlap):
    log, facts = tmp_path / "log", {"FAKE_METAL": 1, "FAKE_LEVELS": "Performance:3,Efficiency:4"}
    simulated(TRAIN_AND_WRITE, tmp_path, family, overlap, FAKE_MLX_LOG=log, **facts)
    watchdogs = [line.split()[1] for line in log.read_text().splitlines()]
    assert "1" in watchdogs, "a GPU worker asks for more time on the GPU"


def test_no_array_of_mlx_reaches_native_code_in_mad_parity_analyze_and_linears(tmp_path):
    simulated(MAD + COMPARE + ANALYZE + LINEARS, tmp_path, FAKE_METAL=1)
