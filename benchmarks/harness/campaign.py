"""A campaign: every script of --full, in order, on one machine, over as many days as it takes.

Its file is JSON, replaced at every step:

    begun   commit, processor, cores, and the version of each package: all has to stay
    pinned  the cores of its processes; null where the system pins none (macOS)
    plan    result -> planned comparisons, and how many pairs would decide each (`Family.plan`)
    runs    every start of a script: command, others' load before it, start; and unless it was
            killed end, exit code, verdicts, and others' load meanwhile
    left    scripts that are left, with their seconds on two idle cores

A script that was killed or failed is run again by the next call, and continues if it keeps its
runs. One that others' load left without a verdict is measured anew.
"""

import datetime
import fcntl
import time
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

import yaml
from harness.claims import NOT_MEASURED
from harness.frame import say, write_rows
from harness.machine import BUSY_SHARE, commit, cores, machine, pin, wait_until_quiet
from harness.page import CLAIMS, families, read

from mlxhog.base import plain_json
from mlxhog.base.locks import lock_file

CORES = 2
"""That a campaign pins its processes to: the sizes of the scripts are for two."""
WAIT_S = 3600.0
FAILED = 4  # exit code


class Campaign:
    """What the file of a campaign says, and what is left of it."""

    def __init__(self, path, scripts):
        """Read the file, if it exists.

        Raises:
            ValueError: it is of something else.
        """
        self.path, self.scripts = path, scripts
        self.known: dict[str, Any] = {"runs": []}
        if path.exists():
            with suppress(ValueError):  # it is no JSON
                self.known = plain_json.read(path)
            if not isinstance(self.known, dict) or not {"begun", "runs"} <= self.known.keys():
                raise ValueError(f"{path} is not the file of a campaign; name another one")

    @contextmanager
    def begin(self, results):
        """Begin or continue it: pin this process, and plan by the results of a folder.

        Raises:
            ValueError: it was begun by another commit, on another machine or with other packages;
                or a process still works on it.
        """
        here = setup()
        begun = self.known.setdefault("begun", here)
        for what in here | begun:
            if here.get(what) != begun.get(what):
                raise ValueError(
                    f"{self.path} was begun with {what} {begun.get(what)}, here it is "
                    f"{here.get(what)}; return to that, or begin a campaign in another file"
                )
        with (self._folder() / "lock").open("ab") as self.lock:  # a script inherits it
            try:
                lock_file(self.lock, self.path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.path} is in use by this campaign or a script that outlived it; "
                    "wait until it ends, or end it"
                ) from None
            chosen = cores()[:CORES]
            self.known["pinned"] = chosen if pin(*chosen) else None
            say(f"pinned to cores {self.known['pinned'] or 'no: this system cannot'}")
            self.known["plan"] = self.known.get("plan") or planned(results)
            self._save()
            yield

    @property
    def left(self):
        """Scripts to run: those whose last run did not end, failed, or was spoilt by others."""
        last = {one["script"]: one for one in self.known["runs"]}
        done = {
            name for name, one in last.items()
            if one.get("code", FAILED) != FAILED and not _spoilt(one)
        }  # fmt: skip
        return [one for one in self.scripts if one.name not in done]

    def keep(self, script):
        """Words with which a script continues its killed run; none where it keeps nothing."""
        number = sum(one["script"] == script.name and _spoilt(one) for one in self.known["runs"])
        path = self._folder() / f"{script.name}-{number}"
        return [script.keep, str(path)] if script.keep else []

    def start(self, script, command):
        """Wait until others are quiet, for an hour at most, and record that a script starts."""
        began, load = time.monotonic(), wait_until_quiet(0.0)
        if load > BUSY_SHARE:
            say(f"others use {load:.2f} cores: waiting, an hour at most, until they use .1 or less")
            load = wait_until_quiet(WAIT_S)
        if load > BUSY_SHARE:
            say(f"others still use {load:.2f} cores: timings may not count, then run this again")
        waited_s = round(time.monotonic() - began)
        self.known["runs"].append(
            {"script": script.name, "command": command, "load_before": round(load, 3),
             "waited_s": waited_s, "start": _now()}
        )  # fmt: skip
        self._save()

    def end(self, code, results):
        """Record how the script ended that has started last, and its results by name."""
        self.known["runs"][-1] |= {
            "end": _now(), "code": code,
            "verdicts": {name: one["verdict"] for name, one in results.items()},
            "load_meanwhile": {name: one["others_load"] for name, one in results.items()},
        }  # fmt: skip
        self._save()

    def status(self):
        """One line for each script, and what is left."""
        last = {one["script"]: one for one in self.known["runs"]}
        for one in self.scripts:
            run = last.get(one.name, {})
            ended = f"exit code {run['code']}, {run['end']}" if "end" in run else "not ended"
            text = "left" if one in self.left else "done"
            yield f"{text}  {one.name:22} {one.seconds:6,} s  {ended if run else 'not begun'}"
        pairs = [one for planned in self.known.get("plan", {}).values() for one in planned]
        few = sum(one["pairs"] is None or one["pairs"] > one["n"] for one in pairs)
        yield f"{few} of {len(pairs)} planned comparisons had fewer pairs than decide them"
        left, hours = len(self.left), sum(one.seconds for one in self.left) / 3600
        yield f"{left} of {len(self.scripts)} scripts are left: {hours:.1f} h on idle cores"

    def _folder(self):
        folder = self.path.with_suffix(".kept").resolve()
        folder.mkdir(exist_ok=True)
        return folder

    def _save(self):
        left = {one.name: one.seconds for one in self.left}
        write_rows(self.path, {**self.known, "left": left})


def setup():
    """What has to stay during a campaign."""
    return {
        "commit": commit(), "processor": machine()["cpu"], "cores": len(cores()),
        **{f"package {one.name}": one.version for one in metadata.distributions()},
    }  # fmt: skip


def planned(results):
    """The planned comparisons of each result on the page, with the pairs that would decide them."""
    rows = yaml.safe_load(CLAIMS.read_text("utf-8"))["results"]
    return {name: one.plan() for name, one in families(rows, read(results)).items()}


def _spoilt(run):
    """Whether others left a result of a run without a verdict."""
    return NOT_MEASURED in run.get("verdicts", {}).values()


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
