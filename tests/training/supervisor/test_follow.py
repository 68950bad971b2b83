"""A run follows a folder: what it takes from its files, and that it trains on it once.

That nothing acknowledged is lost by kills is the soak of `tests/soak/feeds.py`.
"""

import base64
import gzip
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxhog.arena.requests import ask
from mlxhog.base.durable import replace_file
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import of_keywords
from mlxhog.data.stream import Stream, append_examples
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import EnvironmentLacks
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.supervisor import follow
from mlxhog.training.supervisor.api import configured
from mlxhog.training.supervisor.follow import Follower
from mlxhog.training.supervisor.training import train
from tests.pairs import each_of
from tests.soak.feeds import trained as tickets_trained
from tests.threads import join, wait_until
from tests.training.asking import LIMIT_S, trained
from tests.training.small import Messages, checkpoint_of, small_config

TOKENIZER = ByteTokenizer()
ROOT = Path(__file__).parents[3]


def following(tmp_path, **options):
    folder = tmp_path / "new"
    folder.mkdir(exist_ok=True)
    return small_config(tmp_path, follow=str(folder), **{"steps": None, **options})


def stream(directory):
    return Stream(directory / "stream").update()


def rows(directory, *, trained=False):
    """The text of every published row, or its trained part, in order; BOS has no text."""
    published = stream(directory)
    every = [row for k in range(published.last.end_ticket) for row in published.rows(k)]
    return [bytes(TOKENIZER.decode(row.ids[trained * (row.masked + 1) :])) for row in every]


def followed(config, act):
    """The result and the messages of a run; the act comes before its first step, too."""
    messages = Messages()
    return trained(config, act, steps=0, observer=messages), messages


def wait_until_trained(directory, n):
    """Wait until n rows are published, and a checkpoint counts all tickets as trained."""

    def condition():
        if len(rows(directory)) < n:
            return False
        ask(directory, "checkpoint", timeout_s=LIMIT_S)  # it may wait for the workers
        return tickets_trained(directory) == stream(directory).last.end_ticket

    wait_until(condition, LIMIT_S, f"{n} rows", every_s=0.3)  # each look may save a checkpoint


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
        wait_until_trained(directory, 2)
        lines = [{"prompt": "two and two is", "answer": " four"}, {"text": "a plain record"}]
        replace_file(folder / "next.jsonl", "\n".join(map(json.dumps, lines)).encode())
        wait_until_trained(directory, 4)
        append_examples(directory, [{"prompt": "say", "answer": " it"}], TOKENIZER)
        (folder / "sub").mkdir()
        replace_file(folder / "sub" / "last.md", b"# the last")
        wait_until_trained(directory, 6)

    result, messages = followed(config, feed)
    directory = Path(result.run)
    trained_rows = rows(directory)
    text = b"the first text " * 3
    assert trained_rows[:2] == [text[:32], text[31:]]  # neighbours overlap by a token
    assert trained_rows[2:4] == [b"two and two is four", b"a plain record"]
    assert sorted(trained_rows[4:]) == [b"# the last", b"say it"]
    assert result.status == "interrupted"
    assert result.steps == stream(directory).last.end_ticket == tickets_trained(directory)
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
    second, _ = followed(config, lambda run: wait_until_trained(run, 14))
    assert second.steps == 7 + 7
    back = make_plan(configured([of_keywords("train()", {"resume": first.run, "follow": "off"})]))
    assert (back.config.follow, back.budget.seconds) == (None, 60)  # as a new run without a budget
    third = train(replace(config, resume=first.run, follow=None, steps=5))
    ledgers = checkpoint_of(third).state["ledgers"]
    assert ledgers["stream"]["watermark"] == 7
    assert ledgers["data"]["watermark"] + len(ledgers["data"]["done"]) == 12


TALK = b"User: a\nAssistant: b"


def new_follower(folder, run, **options):
    how = {"follow": str(folder), "seq_len": 16, "batch_size": 1, **options}
    return Follower(run, TOKENIZER, TrainConfig(**how))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files are taken at the first look."""
    monkeypatch.setattr(follow, "SETTLED_S", 0.0)
    (folder := tmp_path / "new").mkdir()
    return folder


@pytest.fixture
def follower(folder, tmp_path):
    return new_follower(folder, tmp_path)


def test_what_is_no_text_is_named_once_and_the_others_are_trained(follower, tmp_path):
    os.mkfifo(follower.folder / "w-pipe.txt")
    os.symlink("/dev/zero", follower.folder / "x-device.txt")
    (follower.folder / "folder.txt").mkdir()
    for name, content in [
        ("a.txt", b"good"),
        ("b.txt", b"\0binary"),
        ("c.jsonl", b'{"prompt": "long ' + b"x" * 20 + b'", "answer": "a"}\n'),
        ("d.jsonl", b"{not json\n"),
        ("e.txt", b""),
        ("f.part", b"unfinished"),
        (".g.txt", b"hidden"),
        ("h.png", b"a picture"),
    ]:
        (follower.folder / name).write_bytes(content)
    assert follower.look()
    assert rows(tmp_path) == [b"good"]
    messages = {text.partition(" ")[0]: text for text in follower.messages}
    reasons = {
        "h.png": "its suffix is not that of a text", "b.txt": "not UTF-8 text",
        "c.jsonl": "a row of the run has at most 16", "d.jsonl": "not JSON",
        **dict.fromkeys(("w-pipe.txt", "x-device.txt"), "is no regular file"),
    }  # fmt: skip
    assert messages.keys() == reasons.keys()
    assert all(reasons[name] in text for name, text in messages.items())
    assert not follower.look()
    again = new_follower(follower.folder, tmp_path)
    assert not again.look()
    (follower.folder / "a.txt").write_bytes(b"changed")
    assert not follower.look()
    assert not follower.look()
    _, *_, last = follower.messages
    assert last == "a.txt has changed since it was read; only new files are trained"
    assert len(follower.messages) == len(reasons) + 1


def test_documents_of_new_files_are_cut_at_separators_which_is_said_once(follower, tmp_path):
    for name in "ab":
        (follower.folder / f"{name}.txt").write_text(f"{name} one<|endoftext|>{name} two")
    assert follower.look()
    assert rows(tmp_path) == [b"a one", b"a two", b"b one", b"b two"]
    (message,) = follower.messages
    assert message.startswith("<|endoftext|> in new files: documents are cut there")


def test_a_folder_that_is_removed_is_told_once_and_read_when_it_is_back(follower, tmp_path):
    follower.folder.rename(tmp_path / "away")
    assert not follower.look()
    assert not follower.look()
    (message,) = follower.messages
    assert message.endswith("is gone; the run waits until it is back: put it back, or end the run "
                            "with mlxhog stop")  # fmt: skip
    (tmp_path / "away" / "a.txt").write_bytes(b"good")
    (tmp_path / "away").rename(follower.folder)
    assert follower.look()
    assert rows(tmp_path) == [b"good"]


@each_of(
    ("loss_on", "expected"),
    [("assistant", [b"a", b" b", b" b", b" b"]), ("all", [b"q\na", TALK + b"\n" + TALK, TALK])],
)
def test_conversations_and_pairs_are_trained_on_their_answers(loss_on, expected, folder, tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [{"question": "q", "answer": "a"}, {"messages": talk * 2}]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    follower = new_follower(folder, tmp_path, seq_len=60, loss_on=loss_on)
    follower._writer.accept_examples()
    append_examples(tmp_path, [{"messages": talk}], TOKENIZER)
    assert follower.look()
    assert list(follower.messages) == []
    assert rows(tmp_path, trained=True) == expected


def test_files_are_read_as_the_text_of_the_run_is(folder, tmp_path):
    block = base64.b64encode(bytes(range(90, 190))).decode()
    text = f"a\\n%%\\nb {block}<|endoftext|>"
    (folder / "a.jsonl").write_text(f'{{"body": "{text}"}}')
    how = {"text_key": "body", "document_separator": r"\n%%\n", "skip_machine_data": True}
    assert new_follower(folder, tmp_path, **how).look()
    assert rows(tmp_path) == [b"a", b"b <|endoftext|>"]


def test_a_small_file_that_unpacks_to_more_than_the_limit_is_left_out(
    follower, tmp_path, monkeypatch
):
    monkeypatch.setattr(follow, "MAX_BYTES", 100_000)
    (follower.folder / "bomb.txt.gz").write_bytes(gzip.compress(b"w" * 400_000))
    # Each document counts for `ROW_BYTES`.
    (follower.folder / "many.jsonl.gz").write_bytes(gzip.compress(b'{"text": "w"}\n' * 400))
    (follower.folder / "fits.txt.gz").write_bytes(gzip.compress(b"word " * 18_000))
    assert follower.look()
    for message, name in zip(sorted(follower.messages), ("bomb", "many"), strict=True):
        assert message.startswith(name)
        assert "more than 100,000 bytes of text" in message
    assert 90_000 <= sum(map(len, rows(tmp_path))) <= 99_000  # neighbouring rows overlap


def test_a_file_that_is_being_read_when_the_run_ends_is_read_after_a_resume(follower, tmp_path):
    for name in ("a", "b"):
        (follower.folder / f"{name}.txt").write_text(name * 2000)
    reading, ended = threading.Event(), threading.Event()
    real = follower._rows

    def slow(path):
        for row in real(path):
            yield row
            reading.set()
            assert ended.wait(LIMIT_S)

    follower._rows = slow
    with follower:
        assert reading.wait(LIMIT_S)
        follower._over.set()
        ended.set()
    join([follower._thread])
    assert (follower.fault, rows(tmp_path)) == (None, [])
    assert {path.name for path in (tmp_path / "stream").iterdir()} == {"stream.json"}
    assert new_follower(follower.folder, tmp_path).look()
    assert {row[:1] for row in rows(tmp_path)} == {b"a", b"b"}


@pytest.mark.parametrize("lack", [EnvironmentLacks("reading it needs a package"), MemoryError()])
def test_a_file_that_the_machine_cannot_read_now_is_read_when_the_run_is_resumed(
    follower, tmp_path, lack
):
    (follower.folder / "a.txt").write_text("later")
    (follower.folder / "b.txt").write_text("good")
    real = follower._rows

    def fails(path):
        yield from real(path)
        if path.name == "a.txt":
            raise lack

    follower._rows = fails
    assert follower.look()
    assert not follower.look()
    assert rows(tmp_path) == [b"good"]
    (message,) = follower.messages
    assert message.startswith("a.txt is left out until the run is resumed: ")
    again = new_follower(follower.folder, tmp_path)
    assert again.look()
    assert rows(tmp_path) == [b"good", b"later"]


def test_a_file_is_read_when_it_has_stopped_growing(follower, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "SETTLED_S", 1000.0)
    clock = [0.0]
    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    path = follower.folder / "a.txt"
    for text in ("begin", "begin and end"):
        path.write_text(text)
        for _ in range(3):
            assert not follower.look()
            clock[0] += 400.0
    clock[0] += 400.0
    assert follower.look()
    assert rows(tmp_path) == [b"begin and end"]
