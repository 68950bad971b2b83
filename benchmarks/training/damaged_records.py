"""Replays of damaged records: each ends soon, with an exit code of ours and without a traceback.

One small run of two workers is recorded, and one file of its record changed, again and again, by
the mutations that the tests have. What is still consistent starts processes that wait for turns
which never come: those end, too.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

from mlxhog import train
from mlxhog.arena import event_log
from tests.faults.mutations import mutate
from tests.training.small import small_config

LIMIT_S = 120.0
"""A replay that waits for turns that never come says so after 5 s; this is for a slow machine."""


def measure(findings, count, seed):
    """Replay mutations of one record, and claim that each ends in words."""
    with tempfile.TemporaryDirectory(prefix="mlxhog-damaged-") as folder:
        lines = failures(Path(folder), count, seed)
    print(f"{count} replays of damaged records", *(f"  FAILED: {line}" for line in lines), sep="\n")
    findings.exact("replays of damaged records that ended otherwise than in words", len(lines), 0)


def failures(folder, count, seed):
    """Replay mutations of one record; returns a line for each that did not end as it should."""
    config = small_config(
        folder, workers="mlx:cpu,torch:cpu", determinism="record", optimizer="muon", steps=30
    )
    run = Path(train(config, observer=None).run)
    kept = folder / "kept"
    shutil.copytree(run / event_log.FOLDER, kept)
    names = sorted(path.name for path in kept.iterdir())
    lines = []
    for number in range(count):
        rng = Random(f"{seed}/{number}")
        name = rng.choice(names)
        (run / event_log.FOLDER / name).write_bytes(mutate((kept / name).read_bytes(), rng))
        if fault := _fault(run):
            lines.append(f"mutation {number} of {name}, seed {seed}: {fault}")
        shutil.copy(kept / name, run / event_log.FOLDER / name)
    return lines


def _fault(run):
    """How the replay of a run ended where it should not have ended so."""
    command = [sys.executable, "-m", "mlxhog", "replay", str(run)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S:g} s"
    if done.returncode not in (0, 1, 2, 3):
        return f"exit code {done.returncode}: {done.stderr[-300:]}"
    if "Traceback" in done.stdout + done.stderr:
        return f"a traceback: {done.stderr[-300:]}"
    return None
