"""Interrupted runs: every signal and a closed pipe, at every moment of a run.

A run that is interrupted before its first step has no checkpoint to leave, and says so.
"""

import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from mlxhog.base.interrupts import SIGNALS
from mlxhog.checkpoint import checkpoint, run
from mlxhog.errors import CheckpointError
from tests.processes import HAS_PROC, alive, workers_of
from tests.soak import Counts
from tests.threads import wait_until
from tests.training.small import flags, small_config

CAUSES = ("INT", "TERM", "HUP", "pipe")
MOMENTS = {
    "checkpointing": {"save_every": 5},
    "evaluation": {"eval_every": 5},
    "start-up": None,  # the delay counts from when it handles signals, else from metrics
    "training": {},
    "sample": {"sample_every": 5},
}
"""What a run does most of the time, so that a signal at any time meets it."""

PIPE_STEPS = 4000  # a run whose pipe is closed continues until its budget is used up
PIPE_S = 0.5  # it is closed by then, mostly long before that
LIMIT_S = 600.0  # for the start of a run, and for its end, on a busy machine


def interrupts(n, say):
    """Interrupted runs: n by each signal and by a closed pipe, at another moment each time."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the runs would ignore it, too
    counts, draw = Counts(), random.Random(0)
    for number in range(n * len(CAUSES)):
        cause = CAUSES[number % len(CAUSES)]
        moment = list(MOMENTS)[number % len(MOMENTS)]
        with tempfile.TemporaryDirectory(prefix="mlxhog-soak-") as folder:
            delay_s, wrong = draw.uniform(0.1, 3.0), ""
            try:
                end = interrupted(Path(folder), cause, MOMENTS[moment], delay_s=delay_s)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                end = wrong = f"WRONG: {error}"
        say(f"{cause:4}  {moment:13}  {delay_s:.2f} s  {end}")
        counts.never("interrupted runs that end wrongly", bool(wrong))
    return counts


def answers(pid):
    """Whether a process handles the signals by now; before, each would end the interpreter."""
    if not HAS_PROC:
        return True
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return all(int(caught, 16) >> number - 1 & 1 for number in SIGNALS)


def interrupted(folder, cause, moment, *, delay_s):
    """Interrupt a run in an empty folder, so long after a moment of it begins; see `MOMENTS`.

    Returns:
        "saved", or "nothing to save" for a run that took no step.

    Raises:
        AssertionError: it left no checkpoint, a process, or the wrong words or exit code.
    """
    steps = PIPE_STEPS if cause == "pipe" else 1_000_000
    config = small_config(folder, workers="mlx:cpu*2", steps=steps, **(moment or {}))
    words = ["-m", "mlxhog", "train", "--json", "--quiet", *flags(config)]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process, code = subprocess.Popen([sys.executable, *words], text=True, **pipes), 130
    try:
        wait_until(lambda: process.poll() is not None or answers(process.pid), LIMIT_S, "a program")
        if moment is not None:
            wait_until(lambda: any(folder.glob("runs/*/metrics.jsonl")), LIMIT_S, "metrics")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(delay_s, PIPE_S) if cause == "pipe" else delay_s)
        workers = workers_of(process.pid)
        if cause == "pipe":
            code = 3 if process.poll() is None else 0  # for one that was faster than this process
            process.stdout.close()
            process.stderr.close()
            process.wait(LIMIT_S)
            out, output = "", ""
        else:
            process.send_signal(getattr(signal, f"SIG{cause}"))
            out, output = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert not any(map(alive, workers)), "a worker is left"
    assert "Traceback" not in output, output
    assert process.returncode == code, (process.returncode, output)
    listed = run.list_runs(folder / "runs")
    status = listed[-1].read_status() if listed else {}
    if cause == "pipe":
        assert (status["status"], status["steps"]) == ("done", PIPE_STEPS), status
    elif out:
        assert json.loads(out)["status"] == status["status"] == "interrupted", out
    else:
        assert output.endswith("interrupted\n"), output
    if not status.get("steps"):
        assert not out or json.loads(out)["checkpoint"] is None or not json.loads(out)["steps"]
        return "nothing to save"
    try:
        saved = checkpoint.load(checkpoint.latest(listed[-1]))
    except CheckpointError as error:
        raise AssertionError(f"{status['steps']} steps are lost: {error}") from error
    assert saved.state["used"]["steps"] == status["steps"]
    return "saved"
