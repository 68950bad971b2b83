"""Two ways to the same run end with the same parameters, bit for bit or but for the order of sums.

Each distinct configuration is trained once.
"""

import json

import pytest

from tests.training.small import identical, largest_difference, parameters

BITS, CONSTANT = 0.0, {"schedule": "constant", "warmup": 0}
TWO, EMULATED = {"workers": "mlx:cpu*2"}, {"gpu_write": "metal-emulated"}
SERIAL, MUON = {"strategy": "serial"}, {"optimizer": "muon"}
ORTHOGONAL = {**MUON, **CONSTANT, "lr": 3e-3, "steps": 6}
BY_SPEED = {"batch_size": 3, "optimizer": "momentum", "lr": 1e-2, **CONSTANT, "strategy": "sync"}
CASES = [
    # One worker of any strategy and write mode is the serial run.
    *(({}, SERIAL, {"strategy": one}, BITS)
      for one in ("round_robin", "avg_runs", "local_sgd", "collect", "async_ps", "ssp", "aig")),
    *(({}, SERIAL, {"write": one}, BITS) for one in ("racy", "cas")),
    *((MUON, SERIAL, {"strategy": one}, BITS) for one in ("hogwild", "sync", "locked")),
    ({"predict": "none", "workers": "torch:cpu"}, {}, {"read": "live"}, BITS),
    # One worker that writes everything is dense training.
    *(({}, {}, one, BITS)
      for one in ({"sparsify": "topk:1"}, {"sparsify": "threshold:1e-30"}, {"blocks": "disjoint"})),
    # Workers in rounds and micro-batches are one large batch.
    ({}, {**SERIAL, "batch_size": 4}, {"strategy": "sync", **TWO}, 1e-4),
    (TWO, {**SERIAL, "workers": "mlx:cpu", "batch_size": 4}, {"strategy": "collect"}, 1e-4),
    ({"determinism": "rounds", **TWO}, {"strategy": "sync"}, {"strategy": "collect"}, BITS),
    ({}, {**SERIAL, "batch_size": 4}, {"grad_accumulation": 2}, 1e-4),
    (BY_SPEED | TWO, {}, {"sync_shares": "speed", "inject_stragglers": "0=10"}, 1e-4),
    # Recomputed activations are the kept ones.
    *(({"workers": one}, {"recompute": "none"}, {"grad_checkpoint": True}, BITS)
      for one in ("mlx:cpu", "torch:cpu")),
    # Steps through Metal source, which runs without fused multiply-adds, are native ones.
    *((one, {}, EMULATED, BITS) for one in (
        {"optimizer": "sgd", "lr": 0.1, **SERIAL}, {"optimizer": "lion"},
        {"moments": "shared", "grad_accumulation": 2, "clip": 0.1},
        {"optimizer": "soap", "precondition_every": 3}, {"optimizer": "muon", "lr": 0.003},
        {"optimizer": "momentum", "lr": 0.01, "strategy": "sync", **TWO},
    )),
    ({"steps": 10}, {"kernels": "eager"}, {"kernels": "metal-emulated"}, 1e-4),
    # The CPU and the worker's device orthogonalize alike.
    *(({**ORTHOGONAL, **one}, {"orthogonalization_device": "cpu"},
       {"orthogonalization_device": "worker"}, 5e-4)
      for one in (
        SERIAL, EMULATED,
        {"strategy": "sync", "workers": "mlx:cpu,torch:cpu", "beta1": 0.9},
        {"strategy": "sim"}, {"strategy": "diloco", "average_every": 2},
    )),
    # Processes in turn, and one with overlapped steps, are simulations of stale gradients.
    *(({"steps": 31, **one}, {"strategy": "round_robin", "workers": f"mlx:cpu*{n}"},
       {"strategy": "sim", "sim_staleness": f"fixed:{n - 1}"}, BITS)
      for n, one in (
        (3, {**MUON, "lr": 3e-3, "schedule": "constant"}),
        (2, {"clip": 0.01, "delay_feedback": True}),
        (3, {**MUON, "moments": "shared", "predict": "last"}),
        (2, {"moments": "shared", "predict": "last"}),
    )),
    *(({"optimizer": one, "moments": "private"}, {"overlap": True, "predict": "none"},
       {"strategy": "sim", "sim_staleness": "histogram:1=1"}, BITS) for one in ("adamw", "muon")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("common", "one", "other", "most"), CASES, ids=lambda words: " ".join(map(str, words.values()))
    if isinstance(words, dict) else "",
)  # fmt: skip
def test_two_ways_to_a_run_end_with_the_same_parameters(run_of, common, one, other, most):
    first, second = run_of(common | one), run_of(common | other)
    assert first.tokens == second.tokens
    a, b = parameters(first), parameters(second)
    assert identical(a, b) if most == BITS else largest_difference(a, b) < most
    if "orthogonalization_device" in one:
        assert not identical(a, b)  # sums are in another order
    if "sim_staleness" in other:
        assert dict(first.staleness) == dict(second.staleness)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sync", "collect"])
def test_a_mean_of_workers_weighs_every_label_alike(run_of, tmp_path, strategy):
    answers = ["yes", "no, for a reason that takes more labels than all others " * 2] * 32
    lines = (json.dumps({"prompt": f"{k}?", "completion": one}) for k, one in enumerate(answers))
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    common = {"data": str(tmp_path / "answers.jsonl"), "seq_len": 160, "steps": 6, **CONSTANT}
    one = run_of({**common, **SERIAL, "batch_size": 4})
    other = run_of({**common, "strategy": strategy, **TWO})
    assert one.tokens == other.tokens
    assert largest_difference(parameters(one), parameters(other)) < 1e-4
