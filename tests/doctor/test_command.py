"""`mlxhog doctor` as a user meets it: one object, a table, and nothing left behind."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mlxhog.base import machine, verdicts
from mlxhog.base.workers import BACKENDS, missing
from mlxhog.cli import doctor, main
from mlxhog.doctor.checks import CheckResult
from mlxhog.doctor.litmus import PROMISED, all_readers
from mlxhog.doctor.record import PASTE_LINES, TEMPLATE, paste, sections
from mlxhog.report.table import show
from tests.processes import alive, below

PATIENCE_S = 60.0


@pytest.mark.slow
def test_the_object_has_the_promised_keys(record):
    for name in ("facts", "checks", "litmus", "reads", "tokens_per_s", "verdict"):
        assert record[name], name
    for row in record["litmus"]:
        assert len(row["writers"]) == 2
        assert row["where"] in ("threads", "processes")
        assert row["mode"] in ("lossless", "cas", "racy")
        assert min(row["adds"], row["adds_per_s"]) > 0
        assert "error" not in row
        assert {"kernel", "lost", "torn"} <= row.keys()
    assert record["failed"] == []


@pytest.mark.slow
def test_a_paste_says_in_forty_lines_what_an_issue_needs(record, monkeypatch, capsys):
    monkeypatch.setattr("mlxhog.doctor.examine.examine", lambda *_: dict(record))
    assert main(["doctor", "--quick", "--paste"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= PASTE_LINES
    text = "\n".join(lines)
    for words in ("mlxhog ", "torch ", "litmus lossless: 0 of ", "backend torch:cpu: error ",
                  "--workers auto", TEMPLATE):  # fmt: skip
        assert words in text, words
    assert str(Path.home()) not in text
    many = [{**record["checks"][0], "result": CheckResult.WARN}] * 99
    assert len(paste({**record, "checks": many}).splitlines()) == PASTE_LINES


def test_the_template_of_a_macs_report_is_there():
    template = yaml.safe_load((Path(__file__).parents[2] / TEMPLATE).read_text())
    assert template["name"] == "A Mac's report"
    assert any("mlxhog doctor --paste" in str(part) for part in template["body"])


@pytest.mark.slow
def test_nothing_of_ours_lost_or_tore_a_value(record):
    for row in record["litmus"]:
        assert row["torn"] == 0, row
        if row["mode"] in ("lossless", "cas"):
            assert row["lost"] == 0, row


@pytest.mark.slow
def test_readers_see_whole_values_in_order(record):
    readers = all_readers(machine.here())
    assert len(record["reads"]) == len(readers) * len(PROMISED)
    for row in record["reads"]:
        assert "error" not in row
        assert row["samples"] > 0
        assert (row["torn"], row["backwards"]) == (0, 0)
        assert 0 < row["visible_s"] < 10


@pytest.mark.slow
def test_backends_here_compute_the_reference_gradient_and_are_measured(record):
    checks, speeds = {check["name"]: check for check in record["checks"]}, record["tokens_per_s"]
    for name in BACKENDS:
        check, lack = checks[f"backend {name}"], missing(name, machine.here())
        assert check["result"] == (CheckResult.PASS if lack is None else CheckResult.ABSENT), check
        assert (name in speeds) == (lack is None)
    assert all(speed > 0 for speed in speeds.values())


def shown(record, *, everything=True):
    out = io.StringIO()
    show(sections(record, everything=everything), out, plain=True)
    return out.getvalue()


@pytest.mark.slow
def test_a_racy_writer_that_lost_nothing_does_not_pass(record):
    rows = [{**row, "lost": 0} for row in record["litmus"]]
    lines = [line for line in shown({**record, "litmus": rows}).splitlines() if "twice" in line]
    assert [line.split()[0] for line in lines if " racy " in line] == ["lucky"]
    assert all(line.startswith("PASS") for line in lines if " cas " in line)


@pytest.mark.slow
def test_the_table_explains_its_words_and_says_that_all_is_well(record):
    text = shown(record)
    assert "lossy: some were lost" in text
    assert "`mlxhog train` needs no options" in text


@pytest.mark.slow
def test_a_quick_look_is_not_kept(record):
    assert record["stored"] is None
    assert "quick" in record["not_stored"]
    assert not verdicts.load().usable


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
def test_the_table_shows_every_part(record, plain, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stream = io.StringIO()
    show(sections(record, everything=True), stream, plain=plain)
    text = stream.getvalue()
    for part in (
        "checks",
        "litmus",
        "reads",
        "verdict",
        "--gpu-write auto",
        "--kernels auto",
    ):
        assert part in text
    for a, b in (row["writers"] for row in record["litmus"]):
        assert (f"{a} twice" if a == b else f"{a} + {b}") in text
    assert "FAIL" not in text


@pytest.mark.slow
def test_the_table_names_what_failed_and_what_follows(record):
    lost = {**record["litmus"][0], "lost": 7}
    wrong = {"name": "dense_axpy", "instance": "", "engine": "mlx", "ok": False}
    wrong |= {"max_error": 0.25, "tolerance": 0.0}
    check = {
        "name": "a run",
        "result": "FAIL",
        "found": "loss fell by 0.0",
        "expected": "it falls",
        "consequence": "look at it",
    }
    changed = {
        **record,
        "litmus": [lost],
        "kernels": [wrong],
        "checks": [check],
        "failed": ["a run"],
    }
    text = shown(changed)
    assert "expected: it falls; look at it" in text
    assert "7 of" in text
    assert "error 0.25, allowed 0" in text
    assert "FAILED: a run" in text
    short = shown(changed, everything=False)
    assert short.startswith("FAILED: 1 of ")
    assert "expected: it falls; look at it" in short
    assert "FAILED: a run" in short


@pytest.mark.slow
def test_the_answer_comes_first_and_in_few_lines(record):
    short, text = shown(record, everything=False), shown(record)
    first = "Every promise holds here; `mlxhog train` needs no options."
    assert short.splitlines()[0] == text.splitlines()[0] == first
    assert len(short.splitlines()) < 0.5 * len(text.splitlines())
    assert "--workers auto" in short
    assert "litmus" not in short
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.slow
def test_the_answer_counts_checks_that_a_busy_machine_left_unclear(record):
    load = "cannot be told: busy machine (load average 9.3 on 2 processors)"
    check = {
        "name": "a run", "result": "unclear", "found": f"{load}: 12 steps",
        "expected": "a loss", "consequence": "run mlxhog doctor again",
    }  # fmt: skip
    late = {**record["reads"][0], "error": "late", "untold": load}
    mine = {**record, "checks": [*record["checks"], check], "reads": [late, *record["reads"][1:]]}
    text = shown(mine, everything=False)
    assert text.startswith("2 of ")
    assert "are unclear on a busy machine" in text.splitlines()[0]
    assert f"{load}: 12 steps" in " ".join(text.split())
    assert f"{load}: late" in " ".join(shown(mine, everything=True).split())


@pytest.mark.slow
def test_quiet_says_nothing_but_what_failed(record, monkeypatch, capsys):
    monkeypatch.setattr("mlxhog.doctor.examine.examine", lambda *_: kept(record))
    assert main(["doctor", "--quick", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    failed = kept(record, failed=["a run"])
    monkeypatch.setattr("mlxhog.doctor.examine.examine", lambda *_: failed)
    assert main(["doctor", "--quick", "--quiet"]) == 1
    assert capsys.readouterr() == ("", "FAILED: a run\n")


def kept(record, **changes):
    """A copy as `examine` returns it, before anything is concluded."""
    mine = {key: value for key, value in record.items() if key not in ("verdict", "stored")}
    return mine | changes


@pytest.mark.slow
@pytest.mark.parametrize(("failed", "code"), [([], 0), (["litmus native + native"], 1)])
def test_a_full_look_is_kept_and_its_exit_code_says_whether_all_held(
    record, failed, code, monkeypatch, capsys
):
    mine = kept(record, failed=failed)
    monkeypatch.setattr("mlxhog.doctor.examine.examine", lambda *_: mine)
    assert main(["doctor"]) == code
    out = " ".join(capsys.readouterr().out.split())
    loaded = verdicts.load()
    assert loaded.usable
    assert f"stored in {loaded.path}" in out
    assert loaded.tokens_per_s == record["tokens_per_s"]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_reported_and_ends_nothing(
    record, monkeypatch, tmp_path, capsys
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    mine = kept(record)
    monkeypatch.setattr("mlxhog.doctor.examine.examine", lambda *_: mine)
    assert main(["doctor"]) == 0
    assert "set XDG_CACHE_HOME" in capsys.readouterr().out


@pytest.mark.slow
def test_seconds_reach_the_litmus_tests_with_their_unit(record, monkeypatch):
    calls = []
    mine = kept(record)
    monkeypatch.setattr(
        "mlxhog.doctor.examine.examine", lambda *given: calls.append(given[:2]) or mine
    )
    assert main(["doctor", "--seconds", "1m"]) == 0
    assert main(["doctor", "--seconds", "2", "--quick", "--json"]) == 0
    assert calls == [(60.0, False), (2.0, True)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--secs", "3"], "no flag '--secs'; did you mean '--seconds'?"),
        (["--seconds", "0"], "--seconds is '0'"),
        (["--seconds", "1h"], "at most 60"),
        (["everything"], "unexpected argument 'everything'"),
    ],
)
def test_wrong_input_is_answered_before_anything_is_tried(words, message, monkeypatch, capsys):
    monkeypatch.setattr("mlxhog.doctor.examine.examine", None)
    assert main(["doctor", *words]) == 2
    assert message in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.run(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "mlxhog doctor --json > doctor.json" in out
    assert "--seconds" in out


def heed_interrupts():
    """Take Ctrl-C as a terminal's child does; a shell's background jobs inherit a deaf ear."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


LITMUS_TESTS = """
import sys
from mlxhog.__main__ import main
from mlxhog.doctor import backends, examine
examine.check_shared_memory = lambda: []
backends.check_backends = lambda *_: backends.Measured()
sys.argv[1:] = ["doctor", "--quick", "--seconds", "1"]
sys.exit(main())
"""
"""`mlxhog doctor` without most of what comes before its litmus tests."""


@pytest.fixture
def started():
    """A doctor whose litmus tests are under way, with children."""
    with subprocess.Popen(
        [sys.executable, "-c", LITMUS_TESTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    ) as process:
        try:
            assert process.stderr is not None
            while not (line := process.stderr.readline()).endswith(": litmus ...\n"):
                assert line, "it ended before its litmus tests"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="lists processes by /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_and_no_memory_is_left_when_doctor_is_killed(started, number):
    deadline = time.monotonic() + PATIENCE_S
    while len(children := below(started.pid)) < 2:
        assert time.monotonic() < deadline, "it has no children"
        time.sleep(0.01)
    started.send_signal(number)
    code = started.wait(PATIENCE_S)
    assert code == (-number if number == signal.SIGKILL else 130)
    while living := [*filter(alive, children)]:
        assert time.monotonic() < deadline, f"processes {living} outlived it"
        time.sleep(0.01)
