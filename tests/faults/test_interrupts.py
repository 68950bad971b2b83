"""Signals at any moment: what was reached is saved, a message, and exit code 130.

Interrupts while a run trains are the soak of `tests/soak/interrupts.py`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from mlxhog.base.app_server import AppServer
from mlxhog.base.interrupts import SIGNALS, WARNINGS, Interrupts
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import list_runs
from tests.another_process import Program
from tests.processes import python
from tests.threads import wait_until
from tests.training.small import flags, small_config

FIRST_MOMENTS = {
    "the command is imported": "importlib.import_module",
    "the plan is made": "mlxhog.training.plan.decide.make_plan",
    "the arena is created": "mlxhog.arena.Arena.create",
}


def interrupted(ended):
    """Whether a process ended with an interrupt's exit code, and one word after the progress."""
    words = [one for one in ended.stderr.splitlines() if not one.startswith("tokenizing ")]
    return (ended.returncode, ended.stdout, words) == (130, "", ["interrupted"])


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), [*zip(2 * [*FIRST_MOMENTS], SIGNALS, strict=True)])
def test_a_signal_before_training_is_a_message_and_130(tmp_path, moment, number):
    """The process sends the signal to itself when it first calls a function."""
    module, _, name = FIRST_MOMENTS[moment].rpartition(".")
    program = (
        "import os, pkgutil, sys\n"
        "from mlxhog.__main__ import main\n"
        f"owner = pkgutil.resolve_name({module!r})\n"
        f"setattr(owner, {name!r}, lambda *_, **__: os.kill(os.getpid(), {int(number)}))\n"
        "sys.exit(main())\n"
    )
    words = ("train", "--model=tiny", "--tokenizer=bytes", "--workers=mlx:cpu")
    assert interrupted(python("-c", program, *words, cwd=tmp_path))


INTERRUPTS_ITSELF = """
import importlib, os, signal
text = "os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(1000): pass"
class Named:
    __set_name__ = lambda *_: exec(text)
importlib.import_module = lambda *_: HOW
"""


@pytest.mark.parametrize("how", ["exec(text)", 'type("Owner", (), {"named": Named()})'])
def test_an_interrupt_where_imports_make_dataclasses_is_a_message_and_130(tmp_path, how):
    """CPython marks the one as unhandled, so that `-m` ends by a signal, and wraps the other."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS_ITSELF.replace("HOW", how))
    here = str(tmp_path)
    assert interrupted(python("-m", "mlxhog", "train", cwd=here, PYTHONPATH=here))


def test_under_nohup_a_closed_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.count == 1
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_closed_terminal_counts_once_however_many_send_its_signal(first):
    with Interrupts() as signals:
        for number in (first, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        if first == signal.SIGHUP:  # of two that come together, Python handles it first
            os.kill(os.getpid(), signal.SIGTERM)
        assert (signals.count, signals.received) == (1, 1)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.count == 2


def test_a_warning_counts_once_and_never_as_the_second_signal():
    with Interrupts() as signals:
        for number in WARNINGS + WARNINGS:
            os.kill(os.getpid(), number)
        assert (signals.count, signals.received) == (1, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        for number in WARNINGS:
            os.kill(os.getpid(), number)
        assert (signals.count, signals.received) == (2, 2)


def test_a_callers_handler_of_a_warning_and_an_ignored_one_stay():
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with Interrupts() as outer, Interrupts() as inner:
            for number in WARNINGS:
                os.kill(os.getpid(), number)
        assert (outer.count, inner.count, came) == (0, 1, [1])  # SIGXCPU alone
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGUSR2, ignored)


@pytest.mark.parametrize("counts", [Interrupts, AppServer(None).capture_signals])
def test_a_signal_that_a_program_around_python_handles_stays_its_own(monkeypatch, counts):
    """Python says None for such a handler, as below R, and could not install it again."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    theirs = signal.SIGINT, signal.SIGHUP, signal.SIGUSR1

    def known(number):
        return None if number in theirs else before[number]

    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", known)
        with counts():
            patch.undo()
            assert {one for one in SIGNALS if signal.getsignal(one) == before[one]} >= {*theirs}
            assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.slow
@pytest.mark.parametrize("number", WARNINGS)
def test_a_warning_to_a_whole_batch_job_saves_and_ends_it_as_sigterm_does(tmp_path, number):
    config = small_config(tmp_path, steps=100_000)
    command = [sys.executable, "-m", "mlxhog", "train", "--json", *flags(config)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **how) as job:
        try:
            wait_until(lambda: [*tmp_path.glob("runs/*/times.json")], 120, "its first steps")
            for _ in range(3):
                os.killpg(job.pid, number)
            out, err = job.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 130, err
    result = json.loads(out)
    assert (result["status"], result["restarts"]) == ("interrupted", 0)
    assert result["checkpoint"] is not None


LAST_MOMENTS = {
    "it is saved": ("checkpoints/step-*/state.json", ""),
    "it has ended": ("events.jsonl", '"kind":"ended"'),
    "its result is written": ("run.json", '"result"'),
}


def test_signals_while_a_run_ends_leave_its_result_whole_and_exit_code_0_or_130(tmp_path):
    for k, (files, words) in enumerate(LAST_MOMENTS.values()):
        config = small_config(tmp_path, workers="mlx:cpu", steps=5, name=f"r{k}")

        def has_come(files=f"runs/*r{k}/{files}", words=words):
            texts = [path.read_text().replace(" ", "") for path in tmp_path.glob(files)]
            return any(words in text for text in texts)

        with Program("train", "--json", "--quiet", *flags(config)) as process:
            try:
                wait_until(has_come, 120, words or files)
                while process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.002)
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        assert process.returncode in (0, 130), (process.returncode, err)
        assert err in ("", "interrupted\n")
        (run,) = [run for run in list_runs(tmp_path / "runs") if run.name.endswith(f"r{k}")]
        status = run.read_status()
        assert status["result"]["steps"] == 5
        assert status["status"] in {0: ("done",), 130: ("done", "interrupted")}[process.returncode]
        assert checkpoint.latest(run).name == "step-00000005"
        assert not out or json.loads(out) == status["result"]
