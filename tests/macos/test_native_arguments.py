"""On a Mac MLX's arrays lie in Metal's memory, which native code refuses: only views reach it."""

import pytest

from tests.macos.simulation import linux_only, simulated

pytestmark = linux_only

TRAIN_AND_WRITE = """
import sys
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
written = load("latest", out=folder / "runs", backend="mlx:cpu")
for batch_size in (1, 2):
    prompts, sampling = ["lock", "free"], Sampling(temperature=1.0, max_new_tokens=4)
    answers = written.answer(prompts, sampling, batch_size=batch_size)
    assert [one.row for one in answers]
"""

MAD = """
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.layers import known
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
from mlxhog.theory.analysis.analyze import tickets
from mlxhog.theory.analysis.conflicts import measure
from tests.theory.analysis.measured import subject

sampled = subject(Path(sys.argv[1]), backend="mlx:cpu")
with Child() as child:
    drawn = tickets(sampled.batches().n_tickets, 24, 0)
    assert len(measure(child, sampled, drawn, lambda step: None).norms) == 24
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


@pytest.mark.slow
@pytest.mark.parametrize(("family", "overlap"), [("xlstm", ""), ("xlstm_v1", "overlap")])
def test_the_default_workers_train_evaluate_and_write_text(tmp_path, family, overlap):
    levels = "Performance:3,Efficiency:4"
    simulated(TRAIN_AND_WRITE, tmp_path, family, overlap, FAKE_METAL=1, FAKE_LEVELS=levels)


@pytest.mark.slow
def test_no_array_of_mlx_reaches_native_code_in_mad_parity_analyze_and_linears(tmp_path):
    simulated(MAD + COMPARE + ANALYZE + LINEARS, tmp_path, FAKE_METAL=1)
