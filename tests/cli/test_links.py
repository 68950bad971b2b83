"""A run or study of a stranger whose links lead to files of the user: no command changes those."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.run import Run
from mlxhog.data.stream import StreamWriter, append_examples
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import MlxhogError, RunError
from mlxhog.mad.run import EvalPoint
from mlxhog.mad.study.store import open_store
from mlxhog.training.supervisor.replay import event_log
from tests.cli.command import refused, said
from tests.mad.study.small import config, definition, result
from tests.pairs import each_of
from tests.saved import names, save, saved_run

FILES = (
    "lock", "run.json", "config.yaml", "metrics.jsonl", "times.json", "events.jsonl", "samples.txt",
    "socket", "clients.json", "logs/worker-1.log", "logs/sidecar.log", "logs/deep/er/x.log",
    "architecture/config.json", "architecture/tokenizer.json", "checkpoints/latest",
    "checkpoints/step-00000007/model.safetensors", "checkpoints/step-00000007/state.json",
    "stream/rows.jsonl", "stream/examples.jsonl", "stream/stream.json", "replay/worker-1.log",
    "replay/header.json", "notes",
)  # fmt: skip
FOLDERS = (
    "checkpoints", "checkpoints/step-00000007", "checkpoints/step-00000008",
    "checkpoints/step-00000009.part", "checkpoints/latest", "checkpoints/best", "architecture",
    "logs", "stream", "replay", "model", "plots",
)  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of the user, with files, a run with checkpoints, and a run of a stranger."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    for name in ("step-00000001", "step-00000002", "checkpoints/step-00000003.part"):
        (home / "mine" / name).mkdir(parents=True)
        (home / "mine" / name / "state.json").write_text("{}")
    (home / "mine" / "config.json").write_text("mine")
    (home / ".bashrc").write_text("alias ll='ls -l'\nwithout an end")
    saved_run(tmp_path / "runs", "evil")
    return home


def whole(folder):
    """All that is in a folder."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def put_link(path, target):
    """Let a link stand at a path, in place of what was there; returns where that is now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path("aside").absolute()
    aside.mkdir(exist_ok=True)
    if os.path.lexists(path):
        os.replace(path, aside := aside / str(len(os.listdir(aside))))
    path.symlink_to(target)
    return aside


def kinds(home):
    """Name in the folder, and target, of each kind of link."""
    file, folder, away = home / ".bashrc", home / "mine", home / "new"
    (home.parent / "runs" / "hop").symlink_to(folder)  # for chains
    yield from ((name, file) for name in FILES)
    yield from ((name, folder) for name in FOLDERS)
    yield "samples.txt", Path("../../home/.bashrc")  # relative to the run
    yield "checkpoints", Path("../hop")
    yield "logs", Path("../hop/../mine")
    yield "samples.txt", away  # dangling
    yield "checkpoints", away
    yield "logs/worker-1.log", away / "deep"
    yield "checkpoints/latest", Path("../../../home/mine")


def test_commands_that_write_refuse_a_run_with_a_link_out_of_it_and_name_it(home, capsys):
    run = runs.find("evil", Path("runs"))
    all_kinds = list(kinds(home))
    before = whole(home)
    for name, target in all_kinds:
        aside, named = put_link(run.directory / name, target), f"its {name} is a link to {home}"
        there = whole(run.directory)
        if runs.is_run(run.directory):
            resume = ("train", "--resume", "evil", "--steps", "3", "--sample-every", "1h")
            refused(capsys, named, *resume)
            refused(capsys, named, "runs", "rm", run.name, "--yes")
        with pytest.raises(RunError, match=named), run.lock():
            pass
        assert (whole(home), whole(run.directory)) == (before, there), name
        (run.directory / name).unlink()
        if aside.name != "aside":
            os.replace(aside, run.directory / name)
    assert len(all_kinds) > 30


def test_what_only_reads_shows_such_a_run_and_changes_nothing(home, capsys):
    run = runs.find("evil", Path("runs"))
    run.write_status({"status": "done"})
    for name in ("lock", "samples.txt", "metrics.jsonl", "events.jsonl", "logs"):
        put_link(run.directory / name, home / ".bashrc")
    before = whole(home)
    said(capsys, "runs")
    said(capsys, "show", "evil")
    assert whole(home) == before


def test_a_run_through_links_of_the_user_is_written_and_only_removed_at_its_own_place(home, capsys):
    run = runs.find("evil", Path("runs"))
    os.replace("runs", home / "runs")
    Path("runs").symlink_to(home / "runs")  # on another disk
    Path("named").symlink_to(home / "runs" / run.name)
    named = Run(Path("named").absolute())
    with named.lock():
        named.append_sample("a\fb")
        named.append_sample("text\n\n---\nmore\n")
        save(named, step=8)
    assert named.last_sample() == "text\n\n---\nmore"
    assert os.readlink(named.model) == "checkpoints/step-00000008"
    refused(capsys, f"named is a link to the run {home}", "runs", "rm", "./named", "--yes")
    assert named.has_checkpoint()
    said(capsys, "runs", "rm", run.name, "--yes")
    assert not (home / "runs" / run.name).exists()


def test_a_sidecar_that_appears_while_a_run_is_held_is_not_followed(home):
    run, mine = runs.find("evil", Path("runs")), home / "mine"
    StreamWriter(run.directory, ByteTokenizer(), seq_len=99, batch_size=1).accept_examples()
    example = [{"prompt": "a", "answer": "b"}]
    writers = {
        "samples.txt": lambda: run.append_sample("text"),
        "metrics.jsonl": lambda: run.append_metrics({"step": 1}),
        "stream/examples.jsonl": lambda: append_examples(run.directory, example, ByteTokenizer()),
        "replay/worker-1.log": lambda: event_log.append(
            event_log.worker_path(run.directory, 1), event_log.Begin("torch:cpu", 1, "native")
        ),
        "replay": lambda: event_log.store(run.directory, event_log.End({})),
        "architecture": lambda: checkpoint.write_model(run.architecture, None, None),
        "checkpoints/best": lambda: checkpoint.mark_best(run, mine),
        "checkpoints": lambda: save(run, step=9, keep_last=1),
        "model": lambda: checkpoint.replace_link(run.model, Path("checkpoints/step-00000009")),
    }
    before = whole(home)
    with run.lock():
        for name, write in writers.items():
            is_file = Path(name).suffix in (".txt", ".jsonl", ".log")
            put_link(run.directory / name, home / ".bashrc" if is_file else mine)
            if name in ("checkpoints/best", "model"):
                write()  # the link is replaced
            else:
                with pytest.raises((MlxhogError, OSError), match="link"):
                    write()
            assert whole(home) == before, name
            (run.directory / name).unlink()


def test_a_run_keeps_its_own_links_and_drops_checkpoints_that_are_links(home):
    run = runs.find("evil", Path("runs"))
    (run.directory / "mine").symlink_to("checkpoints/step-00000000")
    with run.lock():
        for step in (1, 2):
            checkpoint.mark_best(run, save(run, step=step, keep_last=1))
    assert names(run) == ["best", "latest", "step-00000001", "step-00000002"]
    with run.lock():
        save(run, step=3, keep_last=1)


@pytest.fixture
def study(home):
    """A study with a run and its curve."""
    store = open_store(definition(1, 1), "studies", "evil")
    point = EvalPoint(step=1, seconds=0.1, loss=0.5, acc_token=0.1, acc_macro=0.2)
    store.append(replace(result(config()), curve=(point,)))
    return store


@each_of(
    "name, target",
    [
        *((name, ".bashrc") for name in ("lock", "runs.jsonl", "candidates.jsonl", "study.yaml",
                                         "curves/x.jsonl", "logs/worker-1.log", "plots/x.html")),
        *((name, "mine") for name in ("curves", "logs", "plots", "curves/deep")),
    ],
)  # fmt: skip
def test_a_study_with_a_link_out_of_it_is_not_resumed(home, study, capsys, name, target):
    before, copy = whole(home), study.directory.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(study.directory, copy)
    put_link(copy / name, home / target)
    refused(capsys, f"its {name} is a link to {home / target}", "mad", "resume", "copy")
    assert whole(home) == before


def test_plots_of_a_study_are_not_written_through_a_link(home, study, capsys):
    put_link(study.directory / "plots", home / "mine")
    before = whole(home)
    refused(capsys, "plots: it, or a folder on the way to it, is a link", "mad", "plot", "evil")
    assert whole(home) == before
