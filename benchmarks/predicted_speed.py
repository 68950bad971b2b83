"""The simulator's throughput of two workers beside the measured one, for every strategy.

    python benchmarks/predicted_speed.py           five turns
    python benchmarks/predicted_speed.py --quick   two turns

Model: xLSTM d 128, 4 blocks, bytes of the corpus sotu, S 256, B 2, AdamW, two workers with one
thread each. What a step costs is taken from a lock-free run of both workers (`times.json`): what
they take while the other works, too, which is more than one takes alone, in their order, and what
lies between two steps. Nothing is fitted to the speed of the strategies that are predicted: a
barrier costs what the copies and the shares of a step cost that workers make around it.
"""

import tempfile
from pathlib import Path

from harness.estimates import Mean
from harness.frame import run
from harness.machine import smallest
from training.recording import QUIET_OPTIONS, model_file

from mlxhog import TrainConfig, train
from mlxhog.checkpoint.run import Run
from mlxhog.research.simulator import simulate, strategies
from mlxhog.research.simulator.machine import worker_of

STEPS = 250
WITHIN = 0.10
SIZES = {"hidden_size": 128, "num_hidden_layers": 4}
PERIOD = 16
ARMS = {
    "hogwild": ({}, strategies.SimulatedHogwild()),
    "round_robin": ({}, strategies.SimulatedRoundRobin()),
    "sync": ({}, strategies.SimulatedSync()),
    "sync, one backup": ({"strategy": "sync", "backup_workers": 1}, strategies.SimulatedSync(1)),
    "async_ps": ({}, strategies.ParameterServer()),
    "ssp": ({"slack": 3}, strategies.SimulatedSSP(3)),
    "locked": ({}, strategies.SimulatedLocked("step")),
    "aig": ({}, strategies.SimulatedLocked("apply")),
    "avg_runs": ({}, strategies.OuterLoop(None)),
    "local_sgd": ({"average_every": PERIOD}, strategies.OuterLoop(PERIOD)),
    "fedprox": ({"average_every": PERIOD}, strategies.OuterLoop(PERIOD)),
    "scaffold": ({"average_every": PERIOD}, strategies.OuterLoop(PERIOD)),
    "diloco": ({"average_every": PERIOD}, strategies.OuterLoop(PERIOD)),
}
"""Options of a run, whose strategy is the name where they name none, and its scheme."""


def trained(model, **options):
    """Gradients per second of a run, and what its steps cost."""
    rounds = options["strategy"] == "sync"
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
        settings = {
            **QUIET_OPTIONS, "model": model, "batch_size": 2, "seq_len": 256, "threads": 1,
            "optimizer": "adamw", "workers": "mlx:cpu*2", "runs_dir": folder,
            "steps": smallest(32, STEPS // 2 if rounds else STEPS), **options,
        }  # fmt: skip
        result = train(TrainConfig(**settings), observer=None)
        workers = [worker_of(one) for one in Run(Path(result.run)).read_times()]
    return result.tokens_per_s / (2 * 256), workers


def measure(findings, chosen):
    """Measure every strategy in turns, predict, compare."""
    model = model_file(**SIZES)
    arms = smallest({name: ARMS[name] for name in ("hogwild", "sync", "diloco")}, ARMS)
    rates = {name: [] for name in arms}
    predicted = {name: [] for name in arms}
    for _ in range(smallest(1, 2 if chosen.quick else 5)):
        workers = []
        for name, (options, scheme) in arms.items():
            rate, costs = trained(model, **{"strategy": name, **options})
            workers = workers or costs  # those of hogwild, which is the first
            rates[name].append(rate)
            updates = 3000 // (2 if isinstance(scheme, strategies.SimulatedSync) else 1)
            expected = simulate(workers, scheme, updates=updates).gradients_per_s
            predicted[name].append(expected)
            print(f"{name:18} {rate:7.1f} gradients/s, predicted {expected:7.1f}", flush=True)
    findings.results |= {"measured": rates, "predicted": predicted}
    for name in arms:
        pairs = zip(predicted[name], rates[name], strict=True)
        error = Mean.of(abs(expected / rate - 1) for expected, rate in pairs)
        findings.at_most(f"{name}: relative error of the prediction", error, WITHIN)


if __name__ == "__main__":
    run(__doc__, measure, modes={"quick": "two turns"}, packages=("mlx",), quiet=True)
