"""`mlxhog doctor` as a user meets it: one object, a table, and nothing left behind."""

import io
import json
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from mlxhog.base import capabilities, machine
from mlxhog.base.capabilities import CellShape, CellTimes
from mlxhog.base.machine import Machine
from mlxhog.base.workers import BACKENDS, missing
from mlxhog.cli import main
from mlxhog.display.table import show
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.litmus import LOSSLESS, all_readers
from mlxhog.doctor.record import sections
from tests.processes import below, left_of
from tests.threads import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def record():
    """What `mlxhog doctor --quick --json` prints, which is all it prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["doctor", "--quick", "--json"])
    assert code == 0, err.getvalue() + out.getvalue()
    assert re.findall(r"^(\d) of 6: .+ \.\.\.$", err.getvalue(), re.M) == list("123456")
    return json.loads(out.getvalue())


def test_the_object_says_that_every_promise_holds_here(record):
    assert record["failed"] == []
    for row in record["litmus"]:
        assert min(row["adds"], row["adds_per_s"]) > 0
        assert (row["torn"], "error" in row) == (0, False), row
        assert row["lost"] == 0 or row["mode"] == "racy", row
    assert len(record["reads"]) == len(all_readers(machine.here())) * len(LOSSLESS)
    for row in record["reads"]:
        assert (row["torn"], row["backwards"], "error" in row) == (0, 0, False), row
        assert row["samples"] > 0
        assert row["visible_s"] > 0
    checks, speeds = {check["name"]: check for check in record["checks"]}, record["tokens_per_s"]
    for name in BACKENDS:
        check, lack = checks[f"backend {name}"], missing(name, machine.here())
        assert check["result"] == (CheckResult.PASS if lack is None else CheckResult.ABSENT), check
        assert (speeds.get(name, 0) > 0) == (lack is None)
    assert record["stored"] is None
    assert "quick" in record["not_stored"]
    assert not capabilities.load().usable


def shown(record):
    out = io.StringIO()
    show(sections(record), out, plain=True)
    return out.getvalue()


def test_the_answer_comes_first_then_what_failed_and_the_choices(record):
    text = shown(record)
    assert text.startswith("All checks passed; `mlxhog train` needs no options.\n")
    assert "--workers auto" in text
    assert "FAIL" not in text
    wrong = {"name": "dense_axpy", "engine": "mlx", "ok": False}
    wrong |= {"max_error": 0.25, "tolerance": 0.0}
    bad = {"name": "a run", "result": "FAIL", "found": "loss fell by 0.0", "expected": "it falls",
           "consequence": "look at it"}  # fmt: skip
    late = {**record["litmus"][0], "error": "no answer"}
    row = CellTimes("mlx:gpu", CellShape("slstm_cell", (4, 192)), 0.04, 0.0123).row()
    text = shown(record | {"cells": [row]})
    assert re.search(r"mlx:gpu +slstm_cell 4x192 +40 ms +12.3 ms", text)
    changed = {"litmus": [late], "kernels": [wrong], "checks": [bad], "failed": ["a run"]}
    text = shown(record | changed)
    assert text.startswith("FAILED: 1 of ")
    for words in ("FAILED: a run", "expected: it falls; look at it", "mlx, dense_axpy",
                  "error 0.25, allowed 0", "no answer"):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 100
    late |= {"inconclusive": "busy"}
    assert " checks are inconclusive on a busy machine" in shown(record | {"litmus": [late]})
    text = shown(record | {"kernels": [wrong | {"error": "late", "inconclusive": "busy"}]})
    assert " checks are inconclusive on a busy machine" in text
    assert "FAIL" not in text


@pytest.mark.parametrize(("failed", "code"), [([], 0), (["litmus native + native"], 1)])
def test_a_full_look_is_kept_if_it_can_be_and_its_exit_code_says_whether_all_held(
    record, failed, code, monkeypatch, tmp_path, capsys
):
    mine = {key: value for key, value in record.items() if key not in ("options", "stored")}
    monkeypatch.setattr("mlxhog.doctor.record.examine", lambda *_: mine | {"failed": failed})
    assert main(["doctor"]) == code
    loaded = capabilities.load()
    assert loaded.usable
    assert f"stored in {loaded.path}" in " ".join(capsys.readouterr().out.split())
    assert loaded.tokens_per_s == record["tokens_per_s"]
    assert main(["doctor", "--quiet"]) == code
    assert capsys.readouterr() == ("", f"FAILED: {failed[0]}\n" if failed else "")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["doctor"]) == code
    assert "set XDG_CACHE_HOME" in capsys.readouterr().out


def test_cells_of_a_model_that_no_gpu_here_can_compute_are_refused_before_anything(
    monkeypatch, capsys
):
    monkeypatch.setattr("mlxhog.doctor.record.examine", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(Machine, "apple_gpu", False)
    for model, code, says in (("160m", 3, "on an Apple GPU, and this is"), ("16m", 2, "160m")):
        assert main(["doctor", "--model", model]) == code
        assert says in capsys.readouterr().err


LITMUS_TESTS = """
import sys
from mlxhog.__main__ import main
from mlxhog.doctor import backends, record
backends.check_backends = lambda *_: backends.MeasuredGradients()
record.ADDS_S[True] = 100.0
sys.argv[1:] = ["doctor", "--quick"]
sys.exit(main())
"""
"""`mlxhog doctor` without most of what comes before its litmus tests, which do not end."""


@pytest.mark.skipif(sys.platform != "linux", reason="lists processes by /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_and_no_memory_is_left_when_doctor_is_killed(number):
    words = [sys.executable, "-c", LITMUS_TESTS]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as doctor:
        try:
            while not (line := doctor.stderr.readline()).endswith(": litmus ...\n"):
                assert line, "it ended before its litmus tests"
            wait_until(lambda: len(below(doctor.pid)) >= 2)
            children = below(doctor.pid)
            doctor.send_signal(number)
            code = doctor.wait(120)
        finally:
            doctor.kill()
    assert code == (-number if number == signal.SIGKILL else 130)
    assert left_of(children, 60) == []
