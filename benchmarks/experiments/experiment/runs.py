"""Trainings of an experiment, one line of a file each, so that an interrupted one continues.

The file is `NAME.runs.jsonl` beside the experiment's result. A line has the commit, the machine,
what was trained, what came of it, and what others used of the machine meanwhile. A training of this
commit on this machine is not run again, unless others disturbed it; with changed files there is no
such commit, and every training is run.
"""

import json
import time

from harness.machine import BUSY_SHARE, LoadWatch, commit, machine


class Runs:
    """The trainings of one experiment at one scale.

    Attributes:
        used: the lines of this run of the script, read or written.
    """

    def __init__(self, about, scale, *, timed=True):
        """Read what an earlier run of the script has finished.

        Args:
            about: the experiment.
            scale: of it.
            timed: whether others' load spoils a training, which is then run again by a later run.
        """
        self.used = []
        self._path = scale.out / f"{about.name}.runs.jsonl"
        self._commit = commit()
        facts = machine()
        self._machine = f"{facts['letter']}, {facts['cpu']}, {facts['cores']} cores"
        clean = self._commit is not None and not self._commit.endswith("+")
        lines = self._path.read_text().splitlines() if clean and self._path.exists() else []
        where = (self._commit, self._machine)
        known = [
            line
            for line in map(_read, lines)
            if (line.get("commit"), line.get("machine")) == where
            and not (timed and line["others_load"] > BUSY_SHARE)
        ]
        self._known = {_name(line["run"]): line for line in known}

    def knows(self, run):
        """Whether a training is finished."""
        return _name(run) in self._known

    def of(self, run, train):
        """What came of a training: read if it is known, else trained and written.

        Args:
            run: what is trained, completely: arm, seed, sizes, rates.
            train: trains it; its numbers become a part of the line.
        """
        name = _name(run)
        if name not in self._known:
            watch, began = LoadWatch(), time.monotonic()
            result = train()
            line = {
                "commit": self._commit,
                "machine": self._machine,
                "run": dict(run),
                "result": dict(result),
                "took_s": round(time.monotonic() - began, 2),
                "others_load": round(watch.stop(), 3),
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._known[name] = _read(json.dumps(line))
        self.used.append(self._known[name])
        result = self._known[name]["result"]
        return result

    @property
    def others_load(self):
        """Cores' worth of CPU that others used, on average over all these trainings."""
        seconds = sum(line["took_s"] for line in self.used)
        loads = sum(line["took_s"] * line["others_load"] for line in self.used)
        return float(loads / seconds) if seconds else 0.0


def _name(run):
    return json.dumps(run, sort_keys=True)


def _read(line):
    """A line as it was written; empty if the process died while it wrote it."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return value
