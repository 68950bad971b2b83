"""The pair of the mission on a simulated macOS: mlx:gpu and torch:mps train one set of parameters.

Both engines are stand-ins that the CPU computes (`site/sitecustomize.py`), so this tests our code
around them and nothing of a Mac's GPU. What a record of doctor permits there: `tests/doctor`.
"""

import json

import pytest

from tests.macos.simulation import linux_only, simulated

PAIR = ["mlx:gpu", "torch:mps"]
LIMIT_S = 400.0  # more than pytest's own limit; on a busy machine four runs took 80 s
pytestmark = [linux_only, pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 60)]

TRAIN = """
import json, os, signal, sys
from pathlib import Path
from unittest import mock
from mlxhog.cli import main
from mlxhog.training.supervisor.session import Session
from tests.soak.killer import Killer
from tests.threads import wait_until
from tests.training.small import small_config

class Watching(Killer):
    # Both write, however long one has no core: the second half of the steps begins with the kill,
    # and the other is stopped until the victim has taken a step, the successor until the other has.
    def _hold(self, session, held):
        half = 0 if self._killed else session.step_limit // 2 + 1  # as in a stream of that length
        session.arena.counters.store("stream_end", half)
        if held or self._killed:
            return super()._hold(session, held)
        victim = session.arena.workers.entry(self._slot)
        (other,) = {entry.pid for entry in map(session.entry, session.handles)} - {victim.pid}
        os.kill(other, signal.SIGSTOP)
        super()._hold(session, held)
        wait_until(lambda: victim.steps, what="a step of the victim")
        os.kill(other, signal.SIGCONT)

    def train(self, config):
        poll, steps, self.goes_on = Session.poll, [], False  # of the other since then

        def watch(session, doing=None):
            poll(session, doing)
            if self.goes_on or not self._killed:
                return
            handles = sorted(session.handles, key=lambda one: one.spec.backend in self.backends)
            other, new = map(session.entry, handles)
            if new.pid and new.pid not in self._killed:
                steps.append(other.steps)
                self.goes_on = steps[-1] > steps[0] or session.steps_done() == config.steps
                os.kill(new.pid, signal.SIGCONT if self.goes_on else signal.SIGSTOP)

        with mock.patch.object(Session, "poll", watch):
            return super().train(config)

if __name__ == "__main__":
    folder, options, killed = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    config = small_config(folder, workers="mlx:gpu,torch:mps", kernels="eager", **options)
    watching = Watching(kills=1, backends=[killed])
    result = watching.train(config)
    if config.determinism == "record":
        main(["replay", result.run, "--json"])
    print(json.dumps({
        "status": result.status, "steps": result.steps, "restarts": result.restarts,
        "torn": result.torn, "lost": result.lost_update_rate,
        "goes_on": watching.goes_on,
        "workers": {worker.backend: worker.steps for worker in result.workers},
    }))
"""
RECORD = {"determinism": "record", "safety_checks": False, "optimizer": "muon"}


@pytest.mark.parametrize(("killed", "options"), [(PAIR[0], {}), (PAIR[1], RECORD)])
def test_both_write_each_continues_when_the_other_is_killed_and_a_record_replays(
    tmp_path, killed, options
):
    arguments = (tmp_path, json.dumps({"steps": 40, **options}), killed)
    printed = simulated(TRAIN, *arguments, timeout_s=LIMIT_S, FAKE_METAL=1)
    *replays, run = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert (run["status"], run["restarts"]) == ("done", 1)
    assert run["steps"] == 40, "exact: a torn step counts, a returned one is repeated"
    assert list(run["workers"]) == PAIR
    assert all(steps > 0 for steps in run["workers"].values()), "both write"
    assert run["goes_on"], "the other continues"
    assert run["torn"] <= 1
    assert not run["lost"] or run["torn"]  # a recorded run does not count them
    facts = [(one["equal"], one["deaths"], one["workers"]) for one in replays]
    assert facts == ([(True, 1, PAIR)] if options else [])


GRADIENTS = """
import numpy as np
from mlxhog.doctor.backends import MODEL, init_params, load_architecture, _tokens
from mlxhog.conformance.engines import FrameworkEngine

def gradients(name):
    engine, model = FrameworkEngine(name, "eager", 1), load_architecture(MODEL)
    engine.load(model, init_params(model, 0))
    engine.backend.param_buffer *= 0.5  # the parameters as other workers have changed them
    engine.backend.refresh()
    loss, grads = engine.differentiate(*_tokens())
    return {"loss": loss, **grads}

expected, *others = map(gradients, ("torch:cpu", "torch:mps", "mlx:gpu"))
for other in others:
    for name, value in expected.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
"""


def test_both_compute_the_gradient_at_the_parameters_of_the_last_refresh():
    simulated(GRADIENTS, FAKE_METAL=1)
