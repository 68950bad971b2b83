"""On a Mac MLX's arrays lie in Metal's memory, which native code refuses: only views reach it.

Everything runs in the simulation, where `site/metal_arrays.py` makes MLX's arrays so and
`site/native_arguments.py` checks and notes every call of a native function.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.macos.simulation import ROOT, linux_only, simulated

pytestmark = linux_only

TRAIN_AND_WRITE = """
import sys
from pathlib import Path
from mlxhog import train
from mlxhog.decoding.sampling import Sampler
from mlxhog.live.model import open_model
from tests.training.small import mixed_model, small_config

folder, family = Path(sys.argv[1]), sys.argv[2]
model = {"model": mixed_model(folder)} if family == "xlstm_v1" else {}
often = {"eval_every": "10", "sample_every": "10", "save_every": "10"}
result = train(small_config(folder, steps=30, workers="auto", **often, **model))
assert (result.status, result.restarts, result.steps) == ("done", 0, 30), result
assert [w.backend for w in result.workers] == ["mlx:gpu", "mlx:cpu", "mlx:cpu"], result.workers
written = open_model("latest", root=folder / "runs", backend="mlx:cpu")
for batch_size in (1, 2):
    prompts, sampler = ["lock", "free"], Sampler(seed=0)
    answers = written.answer(prompts, sampler=sampler, max_new_tokens=4, batch_size=batch_size)
    assert [one.row for one in answers]
"""

MAD = """
from dataclasses import replace
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.layer import known, make
from tests.mad.training.small_runs import small_run

found = train(small_run(layers=" ".join(known()), dim=32, workers="mlx:cpu"))
assert found.status == "done", found
found = train(small_run(layers="mlstm swiglu", workers="mlx:cpu*2"))
assert found.status == "done", found
"""

COMPARE_AND_ANALYZE = """
import sys
from pathlib import Path
from mlxhog.doctor.child import Child
from mlxhog.parity import cases
from mlxhog.parity.comparison import compare
from mlxhog.parity.sides import Side
from mlxhog.theory.analysis.analyze import tickets
from mlxhog.theory.analysis.conflicts import measure
from tests.parity.test_run import GOLDEN
from tests.theory.analysis.measured import subject

sides = [Side("numpy", "numpy"), Side("mlx:cpu", "mlx:cpu", "native")]
for name in ("components", "v1_mixed_02", "large_d_fused"):
    found = compare(cases.read(GOLDEN / f"{name}.safetensors", steps=2), sides, lambda *_: None)
    assert found.ok, [row for row in found.rows if not row.ok]

given = subject(Path(sys.argv[1]), backend="mlx:cpu")
with Child() as child:
    drawn = tickets(given.batches().n_tickets, 24, 0)
    assert measure(child, given, drawn, lambda step: None).samples == 24
"""

LINEARS = """
import mlx.core as mx
from mlxhog.models.ops.native import layers_mlx, ops_mlx

layers_mlx.FAST_GEMM = ops_mlx.FAST_GEMM = True  # as on Linux
x, w, b = mx.ones((2, 3, 4)), mx.ones((5, 4)), mx.ones(5)
y, dy = mx.grad(lambda w: ops_mlx.linears(x, [w, w], [b, None])[0].sum())(w), mx.ones((5, 4)) * 6
assert mx.array_equal(y, dy)
"""


def calls(log: Path) -> Counter[str]:
    """The native functions that were called, and in how many processes each; none was refused."""
    found = log.read_text().splitlines()
    assert not [line for line in found if line.startswith("refused")], found
    return Counter(found)


@pytest.mark.parametrize("family", ["xlstm", "xlstm_v1"])
def test_the_default_workers_train_evaluate_write_text_and_are_generated_from(
    tmp_path: Path, family: str
) -> None:
    log = tmp_path / "calls"
    simulated(TRAIN_AND_WRITE, tmp_path, family, FAKE_METAL=1, FAKE_NATIVE_LOG=log)
    found = calls(log)
    decoder = "XlstmLargeDecoder" if family == "xlstm" else "XlstmV1Decoder"
    assert found[f"{decoder}.step"] >= 1
    # Every CPU worker computes a gradient before it is ready, and so does the command's process.
    assert found["ops.cross_entropy"] >= 2
    assert found["ops.mlstm_grad"] >= 2
