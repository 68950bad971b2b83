"""Odd values anywhere in the files of a run or study: a listing, or one sentence, and no fault."""

import json
import re
from contextlib import suppress
from dataclasses import replace

import pytest
import yaml

from mlxhog.checkpoint import run as runs
from mlxhog.cli.runs import _fields, _row
from mlxhog.display.record import RunRecord
from mlxhog.errors import MlxhogError
from mlxhog.mad.report.leaderboard import read_ranking
from mlxhog.mad.run import EvalPoint
from mlxhog.mad.study.scheduler import seconds_used
from mlxhog.mad.study.store import Store, open_store
from mlxhog.research.analysis.advice import of_run
from mlxhog.research.simulator.machine import worker_of
from mlxhog.training.plan import saved_state
from tests.cli.command import said
from tests.display.sample_run import EVENTS, PROGRESS, VALIDATION, lines, write_run
from tests.mad.study.small import definition, result, texts
from tests.odd_values import variants

STATUS = {
    "status": "done", "created_ns": 5, "order": 5, "host": None, "error": None,
    "mlxhog": "0", "machine": "linux", "chip": "x", "cores": 2,
    "memory_bytes": 1, "gpu_write": "cpu", "kernels": "native", "model": "tiny",
    "data": "sotu", "data_path": None, "parameters": 1000, "automatic": ["lr"],
    "steps": 10, "seconds": 1.0, "resumed": [5], "checkpoint": None, "validation": VALIDATION,
    "socket": "/x",
    "result": {
        "steps": 10, "seconds": 1.0, "tokens_per_s": 5.0, "val_bits_per_byte": 1.5, "val_step": 10,
        "workers": [{"slot": 1, "backend": "torch:cpu"}], "machines": [], "staleness": {"0": 3},
    },
}  # fmt: skip
TIMES = {
    "workers": [
        {"slot": 1, "backend": "torch:cpu", "steps": 2, "compute_us": [100, 200], "read_s": 0.1,
         "apply_s": 0.1, "other_s": 0.1},
    ]
}  # fmt: skip
STATE = {
    "version": 2, "optimizer": "adamw", "strategy": {"strategy": "serial"}, "regime": None,
    "used": {"steps": 2, "tokens": 128, "seconds": 0.1}, "over": True, "ended": None,
    "budget": {"steps": 2, "tokens": None, "time": None, "epochs": None},
    "left": {"steps": 0, "tokens": None, "seconds": None},
    "validation": {"asked_bytes": 65536}, "followed": False, "emulated": False, "joined": 0,
    "ledgers": {"data": {"epoch": 0, "watermark": 2, "done": [4], "torn": 0, "n": 535}},
    "position": {"strategy": "round_robin", "workers": 2, "steps": [1, 1]}, "opt_steps": {"1": 2},
    "text": {"documents": 9, "rows": 8, "grown": [{"epoch": 0, "rows": 7, "digest": "5"}]},
    "tokens_sha256": "7", "val_sha256": "6", "network_bytes": 0,
    "best": {"bits_per_byte": 8.0, "step": 2, "text": "x"},
}  # fmt: skip


def shown(run):
    """All that commands show of a run."""
    _row(_fields(run))
    record = RunRecord(run)
    record.facts(), record.commands(), record.options_in_words(), record.shares()
    record.history.drawn(100)
    with suppress(MlxhogError):
        of_run(run, "racy")


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A run of a stranger, older than a good run."""
    monkeypatch.chdir(tmp_path)
    good = write_run(tmp_path / "runs", "20260101-000000-good")
    bad = write_run(tmp_path / "runs", "20250101-000000-bad", metrics=lines(3))
    (bad.directory / "run.json").write_text(json.dumps(STATUS))
    assert good.created_ns() > bad.created_ns() == 5
    return bad


@pytest.mark.slow
def test_runs_with_odd_statuses_are_listed_and_latest_is_a_good_run(bad, capsys):
    root, n = bad.directory.parent, 0
    for n, (place, odd, status) in enumerate(variants(STATUS)):
        is_new = place in (("created_ns",), ("order",)) and odd == 2**62  # a possible time
        run = root / f"20250101-{n:06}-odd"
        run.mkdir()
        (run / "run.json").write_text(json.dumps(status if not is_new else STATUS))
    for words in (("runs",), ("runs", "--json")):
        assert len(said(capsys, *words).out.splitlines()) > n
    for run in runs.list_runs(root):
        shown(run)
    assert runs.find("latest", root).name == "20260101-000000-good"
    assert "created_ns" in runs.Run(root / "20250101-000050-odd").read_status().get("error", "")


def test_a_damaged_run_says_why_and_stays_removable(bad, capsys):
    (bad.directory / "run.json").write_text(json.dumps({**STATUS, "created_ns": "x"}))
    assert "damaged" in said(capsys, "runs").out
    out = said(capsys, "show", bad.name).out
    assert "created_ns is 'x'; wanted a whole number" in " ".join(out.split())
    said(capsys, "runs", "rm", bad.name, "--yes")


@pytest.mark.slow
def test_odd_lines_of_metrics_and_events_are_skipped_or_shown(bad):
    worker = {"slot": 1, "backend": "torch:cpu", "steps": 5, "staleness": {"0": 3}, "wait_s": 0.1}
    base = {**PROGRESS.to_json(), "workers": [worker, {**worker, "slot": 2}]}
    for path, line in ((bad.metrics_path, base), (bad.events_path, EVENTS[1])):
        before = path.read_text()
        path.write_text(f"{before}{json.dumps(line)}\n")
        shown(bad)
        bad.drop_metrics_after(5, 0.1)  # refused are odd lines alone
        for _, _, odd in variants(line):
            path.write_text(f"{before}{json.dumps(odd)}\n")
            shown(bad)
            with suppress(MlxhogError):
                bad.drop_metrics_after(5, 0.1)
        path.write_text(before)


def test_odd_times_are_refused_in_a_sentence(bad):
    bad.times_path.write_text(json.dumps(TIMES))
    assert [worker_of(one) for one in bad.read_times()]
    for _, _, times in variants(TIMES):
        bad.times_path.write_text(json.dumps(times))
        with suppress(MlxhogError):
            for one in bad.read_times():
                worker_of(one)


def test_an_odd_state_of_a_checkpoint_is_refused_with_its_field(tmp_path):
    saved_state.check(tmp_path, STATE)
    refused = 0
    for place, _, state in variants(STATE):
        if place:  # the manifest wants an object
            message = f"{place[0]}|a count is|has no "
            try:
                saved_state.check(tmp_path, state)
            except MlxhogError as error:
                refused += bool(re.search(message, str(error)))
    assert refused > 350


@pytest.mark.slow
def test_odd_lines_and_definitions_of_a_study_are_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study, candidate = definition(1, 1), texts(1)[0]
    store = open_store(study, "studies", "s")
    point = EvalPoint(step=1, seconds=0.1, loss=0.5, acc_token=0.1, acc_macro=0.2)
    record = replace(result(study.runs(candidate)[0]), curve=(point,))
    store.append(record)
    store.add_proposal(candidate, 0.5)
    files = {
        "runs.jsonl": json.dumps, "candidates.jsonl": json.dumps, "study.yaml": yaml.safe_dump,
        f"curves/{record.key}.jsonl": json.dumps,
    }  # fmt: skip
    for name, spell in files.items():
        path = store.directory / name
        before = path.read_text()
        for place, _, value in variants(yaml.safe_load(before)):
            if name == "runs.jsonl" and "settings" in place:
                continue  # of no reader
            path.write_text(f"{spell(value)}\n")
            with suppress(MlxhogError):
                again = Store(store.directory)
                again.proposals(), again.curve(record.key), seconds_used(again.records())
                if name in ("runs.jsonl", "study.yaml"):
                    read_ranking(again).to_json()
        path.write_text(before)
    assert Store(store.directory).records() == [replace(record, curve=())]
