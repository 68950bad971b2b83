"""Every view of a run shows its state, its workers, its cluster and its sample."""

import io
import json
import re
import sys
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import pytest
from rich.console import Console

from mlxhog import cli
from mlxhog.base.typed import fill
from mlxhog.display import views
from mlxhog.display.metrics import format_parts, rows
from mlxhog.display.plain import PlainLines
from mlxhog.display.record import RunRecord
from mlxhog.display.terminal import LiveTable, scale
from mlxhog.display.views import StatusLine, observer
from mlxhog.progress import PARTS, MachineReport, Phase, PhaseStatus, Progress, shares
from tests.display.sample_run import PROGRESS, WORKER, event, lines, write_run
from tests.pairs import each_of

CPU = {
    "read_s": 1.0, "compute_s": 80.0, "forward_s": 30.0, "apply_s": 10.0, "optimizer_s": 6.0,
    "wait_s": 7.0, "other_s": 2.0,
}  # fmt: skip
GPU = {**CPU, "forward_s": 0.0, "compute_s": 180.0}
HOSTILE = "The \x1b[2J Congress [bold]of[/bold] <b>the</b>\nStates"
MACHINES = tuple(
    MachineReport(name=name, state=state, tokens=300_000, rounds=12, seen_s=90.0, is_own=is_own)
    for name, state, is_own in (
        ("studio", "in the quorum", True), ("studio (2)", "in the quorum", False),
        ("air", "away", False),
    )
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run that was resumed, of two workers with times, on three machines."""
    machines = [vars(one) for one in MACHINES]
    own = {"epoch": 2.3456, "best_step": 380, "best_bits_per_byte": 1.25}
    metrics = [{**each, "first_step_s": 3.25, "machines": machines, **own} for each in lines(20)]
    for each in metrics:
        pairs = zip(each["workers"], (CPU, GPU), strict=True)
        each["workers"] = [worker | of for worker, of in pairs]
    config = "seq_len: 64\nlr: 0.004242640687119285\ntime: 90.0\nworkers: torch:cpu*2\n"
    events = [
        event("message", "worker 2 \x07 died (SIGKILL) and is being replaced"),
        event("sample", HOSTILE), event("checkpoint", "checkpoints/step-00000040"),
    ]  # fmt: skip
    folder, status = tmp_path_factory.mktemp("viewed"), {"automatic": ["lr"]}
    return RunRecord(
        write_run(folder, metrics=metrics, events=events, config=config, status=status)
    )


def said(record, *words):
    """What a command prints of the run."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert cli.main([*words[:1], str(record.run.directory), *words[1:]]) == 0
    return out.getvalue()


def plain(record, message="once"):
    out = io.StringIO()
    with PlainLines(out, every_s=0.0) as view:
        for step in (399, 400):
            view(replace(record.progress, step=step, message=message if step == 399 else None))
    return out.getvalue()


def terminal(record, width=100):
    console = Console(record=True, width=width, file=Terminal(), force_terminal=True)
    with LiveTable(console) as view:
        for message in ("once", None):
            view(replace(record.progress, message=message))
    return console.export_text()


def notebook(record):
    """The one output of a cell, as text and as HTML."""
    cell = []

    def display(output, *, display_id):
        cell.append(output)
        return SimpleNamespace(update=lambda output: cell.__setitem__(-1, output))

    with pytest.MonkeyPatch.context() as patch:
        shell = SimpleNamespace(kernel=object())
        patch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        patch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
        with observer(stream := io.StringIO(), environ={}) as view:
            for message in ("once", None):
                view(replace(record.progress, message=message))
    assert stream.getvalue() == ""
    (output,) = cell
    text, html = output._repr_mimebundle_([], []).values()
    assert "<b>the</b>" not in html
    return text


def page(record):
    said(record, "report")
    with open(record.run.directory / "report.html", encoding="utf-8") as file:
        html = file.read()
    outside_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r"(?:src|href|srcset)\s*=|url\(|@import|connect-src", outside_scripts)
    assert not re.search(r"<b>the</b>|0\.0042426", html)
    return unescape(html)


STATE = ("2.35", "1.250 at step 380", "400", "25.6k", "1.565", "1.677", "torch:cpu")
STATE += ("Congress [bold]of[/bold] <b>the</b>",)
CLUSTER = ("studio (2)", "air", "away, 300k tokens in 12 rounds, seen 1 min 30 s ago")
TABLE = ("studio (this one)", "staleness mean / max", "1.0 / 3", "arena", "uniform", "8.00")
EVENTS = ("died (SIGKILL) and is being replaced",)
SHARES = [", ".join(format_parts(shares(some))) for some in ([CPU, GPU], [CPU], [GPU])]


@each_of(
    ("view", "words"),
    [
        (plain, (*STATE, *CLUSTER, "[1 torch:cpu running 200 steps", "lost updates 0")),
        (terminal, (*STATE, *CLUSTER, *TABLE)),
        (notebook, (*STATE, *CLUSTER, *TABLE)),
        (lambda record: said(record, "watch"), (
            *STATE[:-1], *CLUSTER, *EVENTS, "done: 400 steps", "run: ",
        )),
        (lambda record: said(record, "show"), (
            *STATE[:-1], *CLUSTER[1:], *SHARES, "first step after 3.2 s",
        )),
        (page, (
            *STATE, *CLUSTER[1:], *EVENTS, "linux x86_64", "checkpoints/step-00000040",
            "mlxhog train -c", "<code>mlxhog train --seq-len 64 --time 90.0 --workers",
            "Differs from the defaults: seq_len 64 tokens, lr 0.00424 (auto), time 1 min 30 s",
            "default-src 'none'", "Permission is hereby granted, free of charge",
        )),
    ],
    ids=("plain", "terminal", "notebook", "watch", "show", "page"),
)  # fmt: skip
def test_every_view_shows_the_run_and_sends_a_terminal_no_control_character(record, view, words):
    text = view(record)
    flat = " ".join(text.split())
    assert [one for one in words if one not in flat] == []
    assert view is page or not {"\x1b", "\x07"} & set(text)
    assert flat.count("once") <= 1


def test_a_narrow_terminal_has_fewer_columns(record):
    narrow = terminal(record, width=40)
    assert "backend" in narrow
    assert not {"dropped", "\u2026"} & set(narrow.split())


def test_json_has_the_same_numbers(record):
    states = [json.loads(line) for line in said(record, "watch", "--json").splitlines()]
    last = fill(Progress, states[-1])
    assert (last.step, last.machines, last.workers) == (400, MACHINES, record.progress.workers)
    facts = json.loads(said(record, "show", "--json"))
    expected = {"all workers": [CPU, GPU], "1 torch:cpu": [CPU], "2 torch:cpu": [GPU]}
    assert facts["shares"] == {name: shares(some) for name, some in expected.items()}
    assert facts["first_step_s"] == 3.25


def test_every_second_of_a_step_belongs_to_one_part():
    assert shares([CPU]) == {
        "forward": 0.3, "backward": 0.5, "optimizer": 0.06, "read": 0.01, "write": 0.04,
        "wait": 0.07, "other": 0.02,
    }  # fmt: skip
    assert shares([GPU])["gradient"] == 0.9  # whose passes are computed at once
    assert list(shares([CPU, GPU])) == list(PARTS)
    assert sum(shares([CPU, GPU]).values()) == pytest.approx(1.0, abs=1e-3)
    assert (shares([{}]), shares([{}, CPU])) == ({}, shares([CPU]))  # no recorded parts
    table = rows({"all": shares([CPU, GPU]), "1 torch:cpu": shares([CPU]), "none": {}})
    assert [row[:3] for row in table[::2]] == [["", *PARTS[:2]], ["1 torch:cpu", "30 %", "50 %"]]


@each_of(
    ("value", "left", "right"),
    [(6.0, "uniform", "unigram"), (3.0, "unigram", "gzip"), (1.6, "xz", "")],
)
def test_the_scale_marks_a_value_between_its_neighbours(value, left, right):
    names, axis, _ = scale(value, PROGRESS.baselines)
    assert axis.index("o") > names.index(left)
    assert not right or axis.index("o") < names.index(right)
    for odd in (None, 0.1, 8.0, 99.0, float("nan"), float("inf")):
        assert all(len(line) <= 64 for line in scale(odd, PROGRESS.baselines))


def test_a_progress_is_json_whatever_the_run_does():
    doing = replace(PROGRESS, phase=PhaseStatus(Phase.EVALUATING, 38))
    assert json.loads(json.dumps(doing.to_json(), allow_nan=False))["phase"] == "evaluating 38 %"
    assert PROGRESS.to_json()["phase"] is None


def test_plain_lines_come_at_most_every_interval_and_messages_and_activities_once():
    seconds = iter(float(t) for t in range(1000))
    stream = io.StringIO()
    words = "strategy hogwild: " + "a gradient takes the workers 99.1 ms; " * 5
    many = tuple(replace(WORKER, slot=k) for k in range(1, 65))
    with PlainLines(stream, every_s=10.0, clock=lambda: next(seconds)) as view:
        for k in range(6):
            message = None if k else words
            view(replace(PROGRESS, step=640 + k, message=message, sample="word " * 80))
        for percent in range(101):
            view(replace(PROGRESS, phase=PhaseStatus(Phase.EVALUATING, percent)))
        view(replace(PROGRESS, phase=PhaseStatus(Phase.SAMPLING)))
        for k in range(20):
            view(replace(PROGRESS, step=700 + k, workers=many))
    text = stream.getvalue()
    flat = " ".join(text.split())
    assert [flat.count(one) for one in (words.strip(), "sample: word word", "step 640")] == [1] * 3
    assert "[1 mlx:cpu running 352 steps 17.2k tok/s staleness 1.1]" in flat
    assert "64 workers: 64 running" in flat
    evaluations = [line for line in text.split("\n") if line.startswith("evaluating")]
    assert evaluations[0] == "evaluating 0 %"
    assert 8 <= len(evaluations) <= 12
    assert "\nsampling\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_terminal_has_a_table_a_pipe_lines_and_quiet_is_quiet():
    for stream, term, view in (
        (Terminal(), "xterm", LiveTable), (Terminal(), "dumb", PlainLines),
        (io.StringIO(), "xterm", PlainLines),
    ):  # fmt: skip
        assert isinstance(observer(stream, environ={"TERM": term}), view)
        with observer(stream, quiet=True, environ={}) as quiet:
            quiet(replace(PROGRESS, message="worker 2 restarted", sample="The people"))
        assert stream.getvalue() == ""


def test_a_line_that_stays_is_printed_beside_the_one_that_changes():
    stream = Terminal()
    with StatusLine(stream, quiet=False) as line:
        line("pair [1]", "scoring both")
        line.tell("pair [1]: A 2.1  B 2.2")
    assert stream.getvalue().count("pair [1]: A 2.1  B 2.2\n") == 1


def test_work_shows_how_far_it_is_often_on_a_terminal_and_now_and_then_in_a_pipe(monkeypatch):
    seconds = iter(range(1000))
    monkeypatch.setattr(views.time, "monotonic", lambda: float(next(seconds)))
    out = io.StringIO()
    with StatusLine(out, quiet=False) as line:
        for step in range(12):
            line.tick(lambda step=step: f"step {step}")
    assert out.getvalue() == "step 4\nstep 9\n"
