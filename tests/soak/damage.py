"""Damaged files and damaged records of runs: read or refused in words, soon, in little memory."""

import json
import random
import tempfile
from pathlib import Path

from mlxhog.arena import event_log
from tests.faults.mutations import mutate
from tests.processes import python
from tests.soak import Counts
from tests.soak.runs import recorded, replayed

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = 500
NAME = "damaged files that are not refused as they should be"


def damage(n, say):
    """500 n damaged files, of every kind that a reader takes.

    The readers are in a child, which bounds its own memory; what crashes it says in which case.
    """
    words = ["-m", "tests.faults.fuzz_loaders", "--mutations", str(MUTATIONS * n)]
    done = python(*words, cwd=ROOT, limit_s=None)
    counts, (*failures, last) = Counts(), done.stdout.splitlines() or [""]
    ended = {"failures": 1, "mutations": MUTATIONS * n}
    if done.returncode in (0, 1) and last:
        ended = json.loads(last)
    else:
        failures.append(done.stderr[-3000:])
    counts.never(NAME, ended["failures"], ended["mutations"])
    counts.facts["failures"] = failures
    for failure in failures:
        say(failure)
    return counts


def records(n, say):
    """Replays of n mutations of one record: each ends with an exit code, without a traceback."""
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as name:
        run = recorded(Path(name))
        intact = {path: path.read_bytes() for path in sorted((run / event_log.FOLDER).iterdir())}
        for number in range(n):
            rng = random.Random(f"0/{number}")
            path = rng.choice(list(intact))
            path.write_bytes(mutate(intact[path], rng))
            done = replayed(run)
            wrong = done.returncode not in (0, 1, 2, 3) or "Traceback" in done.stdout + done.stderr
            counts.never("replays of damaged records that ended otherwise than in words", wrong)
            say(f"mutation {number} of {path.name}: {done.returncode} {done.stderr[-300:]}")
            path.write_bytes(intact[path])
    return counts
