"""Where the order of steps is fixed, a resume or a death changes no bit of a run.

Each strategy is paired with another optimizer, and most with tables: none knows the other.
"""

import pytest

from mlxhog.training.supervisor.training import train
from tests.soak.killer import Killer
from tests.training.small import checkpoint_of, identical, parameters, small_config
from tests.training.worker.test_tables import SET, touched

CONSTANT = {"schedule": "constant", "warmup": 0}
FALLING = {"schedule": "backoff", "backoff_steps": 10}
TWO, THREE = {"workers": "mlx:cpu*2"}, {"workers": "mlx:cpu*3"}
RUNS = {
    "serial": {"optimizer": "soap", "precondition_every": 3},
    "hogwild": {"optimizer": "adan"},
    "sparse": {
        "strategy": "hogwild", "sparsify": "topk:0.05", "sampled_softmax": 40, "blocks": "disjoint",
    },
    "locked": {"optimizer": "apollo", "projection_every": 7},
    "async_ps": {"optimizer": "adamw"},
    "sim": {"optimizer": "adamw", "sim_staleness": "speed:1,1,3", "delay_feedback": True},
    "sync": {"optimizer": "muon", **TWO},
    "round_robin": {
        "optimizer": "muon(device=worker)", "moments": "shared", "predict": "last",
        **TWO, **FALLING,
    },
    "avg_runs": {"optimizer": "apollo-mini", "projection_every": 7, **TWO},
    "local_sgd": {"optimizer": "lion", "average_every": 4, **TWO},
    "scaffold": {"optimizer": "momentum", "average_every": 3, **TWO},
    "diloco": {"average_every": 4, **THREE, **FALLING},
}  # fmt: skip
STEPS = 32


def options_of(strategy):
    chosen = RUNS[strategy] if "schedule" in RUNS[strategy] else RUNS[strategy] | CONSTANT
    tables = {} if strategy == "sim" else {"set": SET}
    return {"strategy": strategy, "steps": STEPS, **tables, **chosen}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", RUNS)
def test_a_run_that_is_saved_evaluated_and_resumed_ends_with_the_bits_of_one_that_is_not(
    run_of, tmp_path, strategy
):
    options, result = options_of(strategy), run_of(options_of(strategy))
    assert len(touched(result)) == 3 * ("set" in options)
    saves = {"steps": 17, "save_every": 9, "eval_every": 7}
    first = train(small_config(tmp_path, **options | saves))
    rest = {"steps": STEPS - 17, "resume": first.run}
    second = train(small_config(tmp_path, **options | rest))
    assert (second.run, second.steps) == (first.run, STEPS)
    assert identical(parameters(second), parameters(result))
    ours, theirs = checkpoint_of(second).optimizer, checkpoint_of(result).optimizer
    assert identical(dict(ours), dict(theirs))


def counts(result):
    """The counts of the checkpoint, exact after any death."""
    state = checkpoint_of(result).state
    position = {**state["ledger"], "torn": 0}
    return position, state["version"], state["opt_steps"], state["left"]["steps"], state["position"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sync", "round_robin", "local_sgd", "scaffold"])
def test_a_death_changes_no_bit(run_of, tmp_path, strategy):
    result = run_of(options_of(strategy))
    killed = Killer().train(small_config(tmp_path, **options_of(strategy)))
    assert (killed.status, killed.restarts, killed.steps) == ("done", 1, STEPS)
    if not killed.torn:  # a step that its worker died in may be half added
        assert identical(parameters(killed), parameters(result))
    assert counts(killed) == counts(result)
