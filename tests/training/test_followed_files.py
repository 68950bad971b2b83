"""What a run that follows a folder takes from its files, and which files it leaves out."""

import gzip
import json
import lzma
import os
import socket
import threading

import pytest

from mlxhog.data.stream import Stream, StreamWriter, append_examples
from mlxhog.errors import EnvironmentLacks
from mlxhog.training import follow
from mlxhog.training.follow import Follower
from tests.pairs import each_of
from tests.training.asking import LIMIT_S
from tests.training.test_follow import TOKENIZER, rows

TALK = b"User: a\nAssistant: b"


def new_follower(folder, run):
    return Follower(folder, StreamWriter(run, TOKENIZER, seq_len=16, batch_size=1))


@pytest.fixture
def follower(tmp_path, monkeypatch):
    """A follower that takes a file at its first look."""
    monkeypatch.setattr(follow, "SETTLED_S", 0.0)
    folder = tmp_path / "new"
    folder.mkdir()
    return new_follower(folder, tmp_path)


def test_a_file_that_is_not_text_is_named_once_and_the_others_are_trained(follower, tmp_path):
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
    messages = list(follower.messages)
    names = [text.partition(" ")[0] for text in messages]
    assert names == ["h.png", "b.txt", "c.jsonl", "d.jsonl"]
    assert "its suffix is not that of a text" in messages[0]
    assert "not UTF-8 text" in messages[1]
    assert "a row of the run has at most 16" in messages[2]
    assert not follower.look()
    again = new_follower(follower.folder, tmp_path)
    assert not again.look()
    (follower.folder / "a.txt").write_bytes(b"changed")
    assert not follower.look()
    assert not follower.look()
    assert list(follower.messages)[4:] == [
        "a.txt has changed since it was read; only new files are trained"
    ]


def trained(directory):
    """The trained text of every published row."""
    stream = Stream(directory / "stream").update()
    rows = stream.rows(0, stream.parts[-1].rows)
    return [bytes(TOKENIZER.decode(row.ids[row.masked + 1 :])) for row in rows]


@each_of(
    ("loss_on", "expected"),
    [
        ("assistant", [b" b", b"a", b" b", b" b", b" b"]),
        ("all", [TALK, b"q\na", TALK + b"\n" + TALK, TALK]),
    ],
)
def test_conversations_and_pairs_of_every_kind_of_file_are_trained_on_their_answers(
    loss_on, expected, tmp_path, monkeypatch
):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(follow, "SETTLED_S", 0.0)
    folder = tmp_path / "new"
    folder.mkdir()
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    parquet.write_table(pyarrow.table({"messages": [talk]}), folder / "a.parquet")
    lines = [{"question": "q", "answer": "a"}, {"messages": talk * 2}]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    writer = StreamWriter(tmp_path, TOKENIZER, seq_len=60, batch_size=1)
    writer.accept_examples()
    append_examples(tmp_path, [{"messages": talk}], TOKENIZER)
    follower = Follower(folder, writer, loss_on)
    assert follower.look()
    assert list(follower.messages) == []
    assert trained(tmp_path) == expected


def test_a_file_that_is_not_regular_is_never_opened_and_named_once(follower, tmp_path):
    os.mkfifo(follower.folder / "a-pipe.txt")
    os.symlink("/dev/zero", follower.folder / "b-device.txt")
    os.symlink(follower.folder / "a-pipe.txt", follower.folder / "c-link.txt")
    (follower.folder / "d-folder.txt").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(follower.folder / "e-socket.txt"))
    (follower.folder / "f.txt").write_text("good")
    assert follower.look()
    assert not follower.look()
    assert rows(tmp_path) == [b"good"]
    messages = sorted(follower.messages)
    assert [text[0] for text in messages] == ["a", "b", "c", "e"]
    assert all("is no regular file" in text for text in messages)


@pytest.mark.parametrize(
    ("kind", "suffix", "packed"),
    [(".txt", ".gz", gzip.compress), (".jsonl", ".xz", lzma.compress)],
)
def test_a_small_file_that_unpacks_to_more_than_the_limit_is_left_out(
    follower, tmp_path, monkeypatch, suffix, kind, packed
):
    monkeypatch.setattr(follow, "MOST_BYTES", 100_000)
    line = b'{"text": "word word"}\n'
    for name, size in (("bomb", 400_000), ("fits", 90_000)):
        path = follower.folder / f"{name}{kind}{suffix}"
        path.write_bytes(packed(line * (size // len(line))))
        assert path.stat().st_size < 10_000
    assert follower.look()
    (message,) = follower.messages
    assert message.startswith("bomb")
    assert "more than 100,000 bytes of text" in message
    expected = 90_000 // len(line) * (len(line) if kind == ".txt" else len(b"word word"))
    bytes_trained = sum(map(len, rows(tmp_path)))
    assert expected <= bytes_trained <= 1.1 * expected  # neighbouring rows overlap


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
    assert not follower._thread.is_alive()
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
    monkeypatch.setattr(follow.time, "monotonic", lambda: clock[0])
    path = follower.folder / "a.txt"
    for text in ("begin", "begin and end"):
        path.write_text(text)
        for _ in range(3):
            assert not follower.look()
            clock[0] += 400.0
    clock[0] += 400.0
    assert follower.look()
    assert rows(tmp_path) == [b"begin and end"]
