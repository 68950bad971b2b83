"""Whole runs of a cluster, each in a process of its own with its own folder, as on a machine."""

import os
import signal

from mlxhog import train
from tests.another_process import Running
from tests.cluster.rounds import rounds_in
from tests.processes import alive, below
from tests.threads import wait_until
from tests.training.small import small_config

FOREVER = 10**6


def options_of(address, **more):
    """Options of a run in a cluster; its worker leaves the cores to others."""
    return {"cluster": address, "round_every": 0.3, "steps": FOREVER, "slow": "0=4", **more}


def _train(root, options):
    null = os.open(os.devnull, os.O_WRONLY)
    errors = os.open(root / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(null, 1)
    os.dup2(errors, 2)
    train(small_config(root, **options))


class Machine:
    """A run in a cluster."""

    def __init__(self, root, address, **more):
        root.mkdir(exist_ok=True)
        self.root = root
        self._skipped = len(rounds_in(root))  # of the call that is resumed
        self._process = Running(_train, root, options_of(address, **more))

    def rounds(self):
        """The rounds of this run; none before it has a folder."""
        return rounds_in(self.root)[self._skipped :]

    def await_training(self):
        """Wait until its workers train; a link plays rounds before that."""
        wait_until(lambda: any(self.root.glob("runs/*/metrics.jsonl")))

    def await_round_of(self, members):
        """Wait for one more round of a number of members, with tokens of this machine."""
        before = len(self.rounds())

        def has_come():
            assert self._process.poll() is None, (self.root / "errors.txt").read_text()
            new = self.rounds()[before:]
            return any(one["members"] == members and one["tokens"] for one in new)

        wait_until(has_come)

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def wait(self):
        """Wait for its end, which reports no error."""
        code = self._process.wait(60)
        assert code == 0, (self.root / "errors.txt").read_text()

    def kill(self):
        """Kill the run; its workers and its link follow."""
        children = below(self._process.pid)
        self._process.kill()
        self._process.wait(60)
        wait_until(lambda: not any(map(alive, children)))
