"""The pair of the mission on a simulated macOS: mlx:gpu and torch:mps train one set of parameters.

Both engines are stand-ins that the CPU computes (`site/sitecustomize.py`), so this tests our code
around them and nothing of a Mac's GPU.
"""

import json

import pytest

from tests.macos.simulation import linux_only, simulated

PAIR = ["mlx:gpu", "torch:mps"]
LIMIT_S = 400.0  # on a busy machine four runs took 80 s
pytestmark = [linux_only, pytest.mark.timeout(LIMIT_S + 60)]  # else pytest's own limit is shorter

TRAIN = """
import json, sys
from pathlib import Path
from unittest import mock
from mlxhog.arena.workers import State
from mlxhog.cli import main
from mlxhog.training.session import Session
from tests.training.small import small_config
from tests.training.test_deaths import Killer

class Watching(Killer):
    def train(self, config):
        self.alone = []  # steps of the other worker, from a kill until its successor trains
        poll = Session.poll

        def watch(session, doing=None):
            poll(session, doing)
            entries = [session.entry(seat) for seat in session.seats]
            down = [one.pid in self._killed or one.state == State.STARTING for one in entries]
            if self._killed and sum(down) == 1:
                self.alone.append(entries[down.index(False)].steps)

        with mock.patch.object(Session, "poll", watch):
            return super().train(config)

if __name__ == "__main__":
    folder, options, killed = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    config = small_config(folder, workers="mlx:gpu,torch:mps", kernels="reference", **options)
    watching = Watching(kills=1, backends=[killed])
    result = watching.train(config)
    if config.determinism == "record":
        main(["replay", result.run, "--json"])
    print(json.dumps({
        "status": result.status, "steps": result.steps, "restarts": result.restarts,
        "torn": result.torn, "lost": result.lost_update_rate,
        "alone": watching.alone[-1] - watching.alone[0],
        "workers": {worker.backend: worker.steps for worker in result.workers},
    }))
"""


def trained(folder, killed, **options):
    """Train the pair and kill one; returns what its replay says, if any, and facts of the run."""
    arguments = (folder, json.dumps(options), killed)
    printed = simulated(TRAIN, *arguments, timeout_s=LIMIT_S, FAKE_METAL=1)
    facts = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    run = facts[-1]
    assert (run["status"], run["restarts"]) == ("done", 1)
    assert run["steps"] == options["steps"], "exact: a torn step counts, a returned one is repeated"
    assert list(run["workers"]) == PAIR
    assert all(steps > 0 for steps in run["workers"].values()), "both write"
    assert run["alone"] > 0, "the other continues"
    assert run["torn"] <= 1
    assert not run["lost"] or run["torn"]  # a recorded run does not count them
    return facts


@pytest.mark.slow
@pytest.mark.parametrize("killed", PAIR)
def test_both_write_and_each_continues_when_the_other_is_killed(tmp_path, killed):
    trained(tmp_path, killed, steps=60)


@pytest.mark.slow
def test_a_recorded_run_with_a_killed_worker_replays_bit_for_bit(tmp_path):
    options = {"determinism": "record", "force": True, "optimizer": "muon", "steps": 40}
    replay, _ = trained(tmp_path, "torch:mps", **options)
    assert (replay["equal"], replay["deaths"]) == (True, 1)
    assert replay["workers"] == PAIR


GRADIENTS = """
import numpy as np
from mlxhog.doctor.backends import MODEL, init_params, load_architecture, _tokens
from mlxhog.parity.engines import FrameworkEngine

def gradients(name):
    engine, model = FrameworkEngine(name, "reference", 1), load_architecture(MODEL)
    engine.load(model, init_params(model, 0))
    engine.backend.inbox *= 0.5  # the parameters as other workers have changed them
    engine.backend.refresh()
    loss, grads = engine.differentiate(*_tokens())
    return {"loss": loss, **grads}

expected, *others = map(gradients, ("torch:cpu", "torch:mps", "mlx:gpu"))
for other in others:
    for name, value in expected.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
"""


@pytest.mark.slow
def test_both_compute_the_gradient_at_the_parameters_of_the_last_refresh():
    simulated(GRADIENTS, FAKE_METAL=1)


CHOSEN = """
import json, sys
from dataclasses import asdict
from mlxhog.config.config import TrainConfig
from mlxhog.errors import EnvironmentLacks
from mlxhog.base import verdicts
from mlxhog.base import machine
from mlxhog.training.kernel_choice import choose

def recordable():
    try:
        options = dict(workers="mlx:gpu,torch:mps", kernels="reference")
        config = TrainConfig(determinism="record", **options)
        choose(config, machine.here(), lambda note: None)
    except EnvironmentLacks as refusal:
        assert "is not known to compute the same bits" in str(refusal), refusal
        return False
    return True

here = verdicts.identity()
empty = {"format": verdicts.FORMAT, "litmus": [], "reads": [], "kernels": [], "tokens_per_s": {}}
for changes in json.loads(sys.argv[1]):
    if changes is not None:
        identity = asdict(here) | changes.pop("identity", {})
        verdicts.save({**empty, "identity": identity, **changes}, here)
    notes = []
    workers, _, _ = choose(TrainConfig(), machine.here(), notes.append)
    (note,) = [note for note in notes if note.startswith("workers auto")]
    print(json.dumps([[worker.backend for worker in workers], note, recordable()]))
"""
ROW = {"model": "10m", "pairs": 4, "gain": 1.2, "low": 1.1, "high": 1.3}


def test_auto_and_recorded_runs_follow_the_record_of_this_mac_and_these_versions(tmp_path):
    repeats = {name: {"reference": True} for name in PAIR}
    records = [
        None,
        {},
        {"pair": ROW, "repeats": repeats},
        {"pair": {**ROW, "low": 0.99}, "repeats": {**repeats, "torch:mps": {"reference": False}}},
        {"pair": ROW, "repeats": repeats, "identity": {"torch": "2.12.0"}},
    ]
    facts = {"FAKE_METAL": 1, "FAKE_LEVELS": "Performance:3,Efficiency:4"}
    printed = simulated(CHOSEN, json.dumps(records), XDG_CACHE_HOME=tmp_path, **facts)
    chosen = [json.loads(line) for line in printed.splitlines()]
    gained = [*PAIR, "mlx:cpu"]
    usual = ["mlx:gpu", "mlx:cpu", "mlx:cpu"]
    assert [workers for workers, _, _ in chosen] == [usual, usual, gained, usual, usual]
    words = ["run `mlxhog doctor`"] * 2 + ["1.20 times", "0.99 to 1.30", "torch 2.12.0"]
    assert all(word in note for word, (_, note, _) in zip(words, chosen, strict=True))
    assert [recordable for *_, recordable in chosen] == [False, False, True, False, False]
