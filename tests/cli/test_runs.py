"""`mlxhog runs`: a list that fits the terminal; `mlxhog runs rm`: whole runs or none."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from mlxhog.base.durable import disk_bytes
from mlxhog.base.quantities import format_bytes
from mlxhog.checkpoint import new_run
from mlxhog.checkpoint import run as runs
from mlxhog.cli import main
from mlxhog.display.table import Section, exported
from tests.cli.command import refused, told
from tests.cli.command import said as printed
from tests.display.sample_run import VALIDATION, lines, write_run
from tests.odd_disk import held_elsewhere
from tests.pairs import each_of

DONE = {
    "model": "tiny", "data": "sotu", "parameters": 940_000, "status": "done",
    "result": {"steps": 1084, "seconds": 57.0, "val_bits_per_byte": 1.7304},
    "validation": {**VALIDATION, "share": 0.076},
}  # fmt: skip


def test_tables_for_other_programs_keep_the_text_of_users_as_text():
    rows = [
        ["=SUM(A1)", "-1.5"],
        ["a_b & 50% | x\\y", "+0.2"],
        ["[@x\ny", "1,2"],
        ["-1+cmd", "-5,358.5"],
    ]
    part = Section("", ["run", "bits/byte"], rows, ["a note"])
    assert [*csv.reader(exported(part, "csv").splitlines())] == [
        ["run", "bits/byte"], ["'=SUM(A1)", "-1.5"], ["a_b & 50% | x\\y", "+0.2"],
        ["[@x y", "1,2"], ["'-1+cmd", "-5358.5"],
    ]  # fmt: skip
    latex = exported(part, "latex")
    assert r"a\_b \& 50\% \textbar{} x\textbackslash{}y & +0.2 \\" in latex
    assert "\n{[}@x y & 1,2" in latex
    assert r"| a\_b & 50% \| x\\y | +0.2 |" in exported(part, "markdown")
    part = Section("", ["#", "score", "status"], [["1", "0.21 ± 0.07", "done"]])
    assert exported(part, "latex").splitlines()[::4] == [
        r"\begin{tabular}{rrl}", r"1 & 0.21 $\pm$ 0.07 & done \\",
    ]  # fmt: skip
    assert "| ---: | ---: | --- |" in exported(part, "markdown")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of runs in the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def said(capsys, *words):
    return printed(capsys, *words).out.splitlines()


def listed(capsys):
    shown = said(capsys, "runs")
    assert max(map(len, shown)) <= 100
    return [re.split(r" {2,}", line) for line in shown]


def saved(run):
    (run.checkpoints / "step-00000010").mkdir()
    (run.checkpoints / "step-00000010" / "state.json").write_text("{}")
    return run


def test_a_line_says_what_a_run_was_and_what_it_came_to_also_as_json(root, capsys):
    write_run(root, "20260101-000000-sotu", status=DONE)
    header, line = listed(capsys)
    assert dict(zip(header, line, strict=True)) == {
        "run": "20260101-000000-sotu", "status": "done", "model": "tiny", "data": "sotu",
        "params": "940k", "steps": "1,084", "time": "57 s", "bits/byte": "1.730", "of text": "8%",
    }  # fmt: skip
    record = told(capsys, "runs")
    assert {name: record[name] for name in ("name", *DONE)} == {"name": line[0], **DONE}
    assert (record["steps"], record["seconds"], record["bits_per_byte"]) == (1084, 57.0, 1.7304)


def test_every_state_is_a_word_with_advice_and_a_killed_run_shows_what_it_reached(root, capsys):
    run = write_run(
        root, "20260101-000000-notes", metrics=lines(40),
        status={"status": "running", "steps": 0, "validation": DONE["validation"]},
        config="model: 60m.yaml\ndata: my/notes/*.txt\n",
    )  # fmt: skip
    write_run(root, "20260101-000000-gone", status={**DONE, "status": "diverged"})
    trains = write_run(root, "20260301-000000-now", status={**DONE, "status": "running"})
    with new_run.starting(root, "new", "") as new, trains.lock():
        _, *shown = listed(capsys)
        assert sorted(line[1] for line in shown[:4]) == ["diverged", "early", "running", "starting"]
        (early,) = (line for line in shown if line[0] == run.name)
        assert early[2:7] == ["60m", "notes", "-", "800", "1 min 20 s"]
        assert ["diverged: mlxhog show RUN says why"] in shown
        saved(run)
        assert ["interrupted: mlxhog train --resume RUN continues it"] in listed(capsys)
        refused(capsys, f"the run {new.name} is starting", "stop", new.name)
        assert f"next: mlxhog watch {new.name}" in said(capsys, "show", new.name)


def test_a_run_that_another_host_trains_is_shown_and_only_the_host_can_end_it(root, capsys):
    run = write_run(root, "20260101-000000-notes", status={"status": "running"})
    name = saved(run).name
    held_elsewhere(run.directory)
    assert listed(capsys)[1][1] == "running on another"
    assert said(capsys, "show", name)[0] == f"{name}: running on another"
    way_out = "try again in 60 s if another has died"
    for words, *messages in (
        (f"runs rm {name} --yes", "trains now on another; end it first, there: mlxhog", way_out),
        (f"train --resume {name}", "is in use by process 7 on another; ", way_out),
        (f"stop {name}", "trains on another, and no request reaches it from here"),
    ):
        for message in messages:
            refused(capsys, message, *words.split())
    assert run.directory.exists()


def test_a_run_that_is_removed_while_runs_are_listed_is_left_out(root, capsys, monkeypatch):
    gone, kept = (write_run(root, f"2026010{k}-000000-sotu", status=DONE) for k in (1, 2))
    every = runs.list_runs(root)
    runs.remove(gone)
    monkeypatch.setattr(runs, "list_runs", lambda _: every)
    assert [line[0] for line in listed(capsys)[1:]] == [kept.name]


def test_show_asks_for_a_further_budget_only_where_the_run_has_used_up_its_own(root, capsys):
    for status, more in (("running", []), ("stopped", []), ("done", ["--time", "10m"])):
        run = saved(write_run(root, f"20260101-000000-{status}", status={"status": status}))
        words = said(capsys, "show", run.name)[-1].split()
        assert words == ["mlxhog", "train", "--resume", run.name, *more]


def test_what_a_run_killed_at_its_start_is_told_to_do_is_what_resume_says(root, capsys):
    run = new_run.create(root, "early", "lr: 0.5\n")  # of a process that was killed
    command = said(capsys, "show", "latest")[-1].partition("#")[0].split()
    assert command[:3] == ["mlxhog", "train", "--config"]
    assert Path(command[3]).samefile(run.config_path)
    refused(capsys, f"mlxhog train --config {run.config_path}", "train", "--resume", "latest")
    assert main([*command[1:], "--dry-run", "--tokenizer", "bytes"]) == 0


@each_of("columns", [60, 100])
def test_show_has_every_option_that_is_no_default_and_fits(tmp_path, monkeypatch, capsys, columns):
    config = "lr: 0.004242640687119285\nbeta2: 0.9995\ntime: 3900.0\nmodel: 60m\nseq_len: 64\n"
    status = {**DONE, "automatic": ["lr"]}
    saved(write_run(tmp_path / "runs", "a-sotu", metrics=lines(40), config=config, status=status))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = said(capsys, "show", "sotu")
    assert said(capsys, "show", "latest/best") == shown
    assert max(map(len, shown)) <= columns
    for value in ("lr 0.00424 (auto)", "beta2 0.9995", "time 1 h 05 min", "seq_len 64 tokens",
                  "51.2k", "1 min 20 s"):  # fmt: skip
        assert value in "\n".join(shown)
    assert told(capsys, "show", "sotu")["options"]["lr"] == 0.004242640687119285


def test_a_run_elsewhere_is_named_in_advice_by_a_path_that_finds_it(tmp_path, root, capsys):
    there = saved(write_run(tmp_path / "my runs", "20260101-000000-there"))
    for words in (["there", "--runs-dir", "my runs"], [str(there.directory)]):
        plot, resume = said(capsys, "show", *words)[-2:]
        assert plot == "next: mlxhog plot 'my runs/20260101-000000-there'"
        assert shlex.split(resume)[3] == "my runs/20260101-000000-there"
    assert runs.find(shlex.split(resume)[3], Path("runs")) == there


@pytest.fixture
def three(root):
    return [new_run.create(root, name) for name in ("a-one", "b-two", "b-three")]


def left(root):
    return sorted(path.name.rpartition("-")[2] for path in root.iterdir())


def test_runs_are_removed_by_whole_names_with_date_or_without_and_by_path(root, three, capsys):
    output = said(capsys, "runs", "rm", three[0].name, "b-two", "a-one", "--yes")
    assert [line.split(" (")[0] for line in output] == [f"removed {run.name}" for run in three[:2]]
    assert left(root) == ["three"]
    words = ("runs", "rm", three[2].directory, "--yes")
    assert told(capsys, *words)["removed"] == [str(three[2].directory)]
    assert left(root) == []


def test_a_run_named_by_two_paths_is_removed_once_and_the_others_too(root, three, capsys):
    again = f"{root}/../runs/{three[0].name}"
    output = said(capsys, "runs", "rm", three[0].name, again, three[1].name, "--yes")
    assert [line.split(" (")[0] for line in output] == [f"removed {run.name}" for run in three[:2]]
    assert left(root) == ["three"]


def test_runs_of_one_name_in_two_folders_are_both_listed_and_counted(root, three, capsys):
    name = three[0].name
    write_run(root.parent / "backup", name, metrics=lines(9))
    words = ("runs", "rm", f"runs/{name}", f"backup/{name}", three[1].name)
    n_bytes = [disk_bytes(Path(word).absolute()) for word in (*words[2:4], three[1].directory)]
    listed = zip((*words[2:4], three[1].name), map(format_bytes, n_bytes), strict=True)
    message = ", ".join(f"{name} ({size})" for name, size in listed)
    refused(capsys, f"would remove {message}; run it again", *words)
    assert told(capsys, *words, "--yes")["bytes"] == sum(n_bytes)


def test_nothing_is_removed_where_anything_is_wrong(root, three, capsys):
    for name in ("20260101-000000-same", "20260102-000000-same"):
        write_run(root, name)
    with write_run(root, "20260103-000000-trains").lock():
        for words, message in (
            ("a-one nothing --yes", "no run 'nothing'"),
            ("a-one two --yes", r"'two' is not the whole .*; did you mean '.*-b-two'"),
            ("a-one b-t --yes", "part of the names of 2 runs"),
            ("latest --yes", r"'latest' is not the whole name .*; did you mean '.*-trains'"),
            ("a-one", r"would remove .*one \(.* B\); run it again with --yes"),
            ("--yes", "RUN"),
            ("a-one same --yes", r"'same' is the name of 2 runs: .*2-000000-same, "),
            ("a-one trains --yes", "trains now; end it first: mlxhog stop 20260103-000000-trains"),
        ):
            assert main(["runs", "rm", *words.split()]) == 2
            assert len(left(root)) == 6
            assert re.search(message, capsys.readouterr().err)


def test_runs_are_listed_as_csv_with_the_advice_on_stderr(root, capsys):
    assert "no runs" in printed(capsys, "runs", "--format", "csv").err
    write_run(root, "20260101-000000-one", status={**DONE, "status": "failed"})
    shown = printed(capsys, "runs", "--format", "csv")
    head, row = csv.reader(shown.out.splitlines())
    assert (head[0], row[0], row[head.index("bits/byte")]) == (
        "run",
        "20260101-000000-one",
        "1.730",
    )
    assert "failed: mlxhog show" in shown.err
    assert printed(capsys, "runs", "--format", "latex").out.startswith(r"\begin{tabular}")
