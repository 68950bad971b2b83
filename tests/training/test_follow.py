"""A run follows a folder: it trains on new text once and in order, also after kills."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.arena.requests import ask
from mlxhog.checkpoint import checkpoint, run
from mlxhog.data.stream import Stream, append_examples
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import CheckpointError
from mlxhog.training import follow
from tests.training.asking import LIMIT_S, Client
from tests.training.small import checkpoint_of, small_config

TOKENIZER = ByteTokenizer()
ROOT = Path(__file__).parents[2]


def following(tmp_path, **options):
    folder = tmp_path / "new"
    folder.mkdir(exist_ok=True)
    return small_config(tmp_path, follow=str(folder), **{"steps": None, **options})


def stream(directory):
    return Stream(directory / "stream").update()


def rows(directory):
    """The text of every published row, in order; BOS has no text."""
    published = stream(directory)
    every = published.rows(0, published.parts[-1].rows)
    return [bytes(TOKENIZER.decode(row.ids)) for row in every]


def done(directory):
    """Tickets of the stream that the last checkpoint counts as trained."""
    new_run = run.Run(directory)
    _, path = checkpoint.resumable(str(directory), new_run.directory.parent)
    position = checkpoint.load(path).state["ledgers"]["stream"]
    assert position["done"] == []
    return int(position["epoch"] * position["n"] + position["watermark"])


def wait_for(condition, what):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"waited for: {what}"
        time.sleep(0.3)  # each look may ask for a checkpoint


class Following(Client):
    """Acts on a run that follows, even before its first step; keeps its messages."""

    def __init__(self, config, act):
        super().__init__(config, act, steps=0)
        self.messages = []

    def __call__(self, progress):
        self.messages += [progress.message] if progress.message else []
        super().__call__(progress)


def followed(config, act):
    def act_and_stop(directory):
        try:
            act(directory)
        finally:
            ask(directory, "stop")

    client = Following(config, act_and_stop)
    result = train(config, observer=client)
    client.finish()
    return result, client.messages


def trained_all(directory, n):
    """Whether n rows are published, and a checkpoint counts all tickets as trained."""

    def condition():
        if len(rows(directory)) < n:
            return False
        ask(directory, "checkpoint")
        return done(directory) == stream(directory).parts[-1].end_ticket

    return condition


@pytest.fixture
def looking_often(monkeypatch):
    for name in ("LOOK_S", "SETTLED_S"):
        monkeypatch.setattr(follow, name, 0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("looking_often")
def test_new_files_and_examples_are_trained_once_in_order(tmp_path):
    config = following(tmp_path, workers="mlx:cpu*2", batch_size=2)
    folder = Path(config.follow)
    (folder / "first.txt").write_text("the first text " * 3)

    def feed(directory):
        wait_for(trained_all(directory, 2), "the first file")
        lines = [{"prompt": "two and two is", "answer": " four"}, {"text": "a plain record"}]
        (folder / "next.jsonl").write_text("\n".join(map(json.dumps, lines)))
        wait_for(trained_all(directory, 4), "the records")
        append_examples(directory, [{"prompt": "say", "answer": " it"}], TOKENIZER)
        (folder / "sub").mkdir()
        (folder / "sub" / "last.md").write_text("# the last")
        wait_for(trained_all(directory, 6), "the example and the last file")

    result, messages = followed(config, feed)
    directory = Path(result.run)
    trained_rows = rows(directory)
    text = b"the first text " * 3
    assert trained_rows[:2] == [text[:32], text[31:]]  # neighbours overlap by a token
    assert trained_rows[2:4] == [b"two and two is four", b"a plain record"]
    assert sorted(trained_rows[4:]) == [b"# the last", b"say it"]
    assert result.status == "interrupted"
    assert result.steps == stream(directory).parts[-1].end_ticket == done(directory)
    assert any("until mlxhog stop or Ctrl-C" in message for message in messages)
    assert sum("waiting for new text" in message for message in messages) >= 2
    wait_again, _ = followed(replace(config, resume=result.run), lambda directory: None)
    assert wait_again.steps == result.steps  # nothing new, so nothing is trained


@pytest.mark.slow
@pytest.mark.usefixtures("looking_often")
def test_a_run_trains_on_its_text_and_on_new_files_in_turn(tmp_path):
    first = train(small_config(tmp_path, steps=7))
    config = replace(following(tmp_path), resume=first.run)  # which has used up its own budget
    (Path(str(config.follow)) / "new.txt").write_text("something new " * 30)
    second, _ = followed(config, lambda run: wait_for(trained_all(run, 14), "the file"))
    assert second.steps == 7 + 7
    third = train(replace(config, resume=first.run, follow=None, steps=5))
    ledgers = checkpoint_of(third).state["ledgers"]
    assert ledgers["stream"]["watermark"] == 7
    assert ledgers["data"]["watermark"] + len(ledgers["data"]["done"]) == 12


RUN = """
import sys
from pathlib import Path
from mlxhog import train
from mlxhog.training import follow
from tests.training.test_follow import following
if __name__ == "__main__":
    follow.LOOK_S = follow.SETTLED_S = 0.1
    options = dict(workers="mlx:cpu*2", save_every="300ms", time=300.0)
    train(following(Path(sys.argv[1]), resume=(sys.argv[2:] or [None])[0], **options))
"""


@pytest.mark.slow
def test_text_that_was_acknowledged_is_trained_once_after_any_kill(tmp_path):
    script = tmp_path / "follow.py"
    script.write_text(RUN)
    config = following(tmp_path)
    sent = []

    def start(*resume):
        command = [sys.executable, str(script), str(tmp_path), *resume]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def send(directory, count):
        for _ in range(count):
            text = f"number {len(sent)}"
            append_examples(directory, [{"prompt": "say", "answer": f" {text}"}], TOKENIZER)
            sent.append(f"say {text}")
            (Path(str(config.follow)) / f"{len(sent):04}.txt").write_text(f"file {len(sent)}")

    def seen(directory):
        return {row.decode() for row in rows(directory)}

    process = start()
    try:
        wait_for(lambda: (tmp_path / "runs").is_dir(), "the run")
        wait_for(lambda: bool(run.list_runs(tmp_path / "runs")), "the run")
        directory = run.find("latest", tmp_path / "runs").directory
        wait_for((directory / "stream" / "stream.json").exists, "its stream")
        for some in (0, 8):  # the first kill may come before the first step
            send(directory, 10)
            wait_for(lambda n=some: len(seen(directory) & set(sent)) >= n, "some of them")
            send(directory, 10)
            process.send_signal(signal.SIGKILL)
            process.wait()
            send(directory, 3)  # no process runs
            process = start(str(directory))
        files = {f"file {k + 1}" for k in range(len(sent))}
        wait_for(lambda: seen(directory) >= set(sent) | files, "all of them")
        wait_for(trained_all(directory, 0), "their training")
        ask(directory, "stop")
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
    published = [row.decode() for row in rows(directory)]
    assert sorted(published) == sorted([*sent, *files])  # each once
    assert done(directory) == stream(directory).parts[-1].end_ticket


@pytest.mark.slow
@pytest.mark.usefixtures("looking_often")
def test_a_run_that_has_promised_longer_examples_is_not_resumed_with_a_shorter_seq_len(tmp_path):
    config = following(tmp_path, workers="mlx:cpu")
    result, _ = followed(config, lambda directory: None)
    append_examples(Path(result.run), [{"prompt": "", "answer": "x" * 31}], TOKENIZER)
    shorter = replace(config, resume=result.run, seq_len=16)
    with pytest.raises(CheckpointError, match="seq_len 32.*for seq_len 16.*--seq-len 32"):
        train(shorter)
    wait = trained_all(Path(result.run), 1)
    followed(replace(config, resume=result.run), lambda run: wait_for(wait, "the example"))
    assert rows(Path(result.run)) == [b"x" * 31]
