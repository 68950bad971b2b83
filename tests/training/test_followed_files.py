"""What a run that follows a folder takes from its files, and which files it leaves out."""

import gzip
import json
import lzma
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlxhog.data.stream import Stream, StreamWriter, append_examples
from mlxhog.errors import EnvironmentLacks
from mlxhog.training import follow
from mlxhog.training.follow import Follower
from tests.pairs import each_of
from tests.training.asking import LIMIT_S
from tests.training.test_follow import ROOT, TOKENIZER, rows

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
    assert "not text: a zero byte" in messages[1]
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
    rows = Stream(directory / "stream").update().all_rows()
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


def test_a_name_that_is_not_utf8_is_named_once_and_all_others_are_trained(follower, tmp_path):
    for name in (b"caf\xe9.txt", b"fold\xff/b.txt", b"a.txt"):
        path = Path(os.fsdecode(bytes(follower.folder) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"good")
    StreamWriter(tmp_path, TOKENIZER, seq_len=16, batch_size=1).accept_examples()
    append_examples(tmp_path, [{"prompt": "say", "answer": " it"}], TOKENIZER)
    assert follower.look()
    assert not follower.look()
    assert rows(tmp_path) == [b"good", b"say it"]
    assert sorted(follower.messages) == [
        r"caf\xe9.txt is left out: its name is not UTF-8; rename it",
        r"fold\xff/b.txt is left out: its name is not UTF-8; rename it",
    ]


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


def test_a_pipe_that_takes_the_place_of_a_file_is_left_out(follower, tmp_path, monkeypatch):
    (follower.folder / "a.txt").write_text("a file")
    settled = follower._settled()
    monkeypatch.setattr(follower, "_settled", lambda: settled)
    (follower.folder / "a.txt").unlink()
    os.mkfifo(follower.folder / "a.txt")
    assert follower.look()
    assert rows(tmp_path) == []
    assert "is a pipe or a device" in follower.messages[0]


def packed(suffix, text):
    if suffix == ".gz":
        return gzip.compress(text)
    if suffix == ".xz":
        return lzma.compress(text)
    arrow = pytest.importorskip("pyarrow")
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(text)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_small_file_that_unpacks_to_more_than_the_limit_is_left_out(
    follower, tmp_path, monkeypatch, suffix, kind
):
    monkeypatch.setattr(follow, "MOST_BYTES", 100_000)
    line = b'{"text": "word word"}\n'
    for name, size in (("bomb", 200_000), ("fits", 90_000)):
        path = follower.folder / f"{name}{kind}{suffix}"
        path.write_bytes(packed(suffix, line * (size // len(line))))
        assert path.stat().st_size < 10_000
    assert follower.look()
    (message,) = follower.messages
    assert message.startswith("bomb")
    assert "holds more than 100,000 bytes, unpacked" in message
    expected = 90_000 // len(line) * (len(line) if kind == ".txt" else len(b"word word"))
    bytes_trained = sum(map(len, rows(tmp_path)))
    assert expected <= bytes_trained <= 1.1 * expected  # neighbouring rows overlap


@pytest.mark.slow
def test_a_table_whose_few_texts_stand_in_many_rows_is_left_out(follower, tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(follow, "MOST_BYTES", 100_000)
    for name, count in (("bomb", 500), ("fits", 20)):
        table = pyarrow.table({"text": ["word " * 200] * count, "number": range(count)})
        parquet.write_table(table, follower.folder / f"{name}.parquet")
    assert follower.look()
    (message,) = follower.messages
    assert message.startswith("bomb.parquet is left out: it has more than 100,000 bytes")
    assert sum(map(len, rows(tmp_path))) >= 20_000


@pytest.mark.slow
def test_reading_a_large_file_takes_little_more_memory_than_its_text(tmp_path):
    """In a process of its own, since the largest memory of a process never falls."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "large.txt").write_bytes(b"a line of text that is not so short\n" * 670_000)
    process = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path)], capture_output=True, check=True, cwd=ROOT
    )
    before, after = map(int, process.stdout.split())
    assert (after - before) * 1024 < 120 << 20, process.stdout  # of 24 MB


LARGE = """
import resource, sys
from pathlib import Path
from mlxhog.data.stream import StreamWriter
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.training import follow
follow.SETTLED_S = 0.0
run = Path(sys.argv[1])
writer = StreamWriter(run, ByteTokenizer(), seq_len=64, batch_size=8)
follower = follow.Follower(run / "new", writer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
assert follower.look()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


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
    assert set((tmp_path / "stream").iterdir()) == set()
    assert new_follower(follower.folder, tmp_path).look()
    assert {row[:1] for row in rows(tmp_path)} == {b"a", b"b"}


def test_a_disk_that_does_not_answer_delays_no_end_of_a_run(follower, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "LEAVE_S", 0.01)
    (follower.folder / "a.txt").write_text("text")
    reading, answers = threading.Event(), threading.Event()
    real = follower._rows

    def hangs(path):
        yield from real(path)
        reading.set()
        assert answers.wait(LIMIT_S)
        follower._over.clear()  # as if the end had not been noticed

    follower._rows = hangs
    with follower:
        assert reading.wait(LIMIT_S)
    again = new_follower(follower.folder, tmp_path)
    assert again.look()
    answers.set()
    follower._thread.join(LIMIT_S)
    assert rows(tmp_path) == [b"text"]  # the late thread has published nothing


def test_an_unexpected_error_of_a_reader_costs_its_file_alone(follower, tmp_path):
    (follower.folder / "a.txt").write_text("bad")
    (follower.folder / "b.txt").write_text("good")
    real = follower._rows

    def fails(path):
        yield from real(path)
        if path.name == "a.txt":
            raise RuntimeError("unexpected")

    follower._rows = fails
    assert follower.look()
    assert rows(tmp_path) == [b"good"]
    assert list(follower.messages) == ["a.txt is left out: RuntimeError: unexpected"]


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
