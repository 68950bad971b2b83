"""A run follows a folder: new text is trained once, in order, and never lost by a kill."""

import gzip
import json
import lzma
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxhog import TrainConfig, train
from mlxhog.arena.requests import ask
from mlxhog.checkpoint import checkpoint, run
from mlxhog.data.segments import StreamSegment, TrainingRow, read_all
from mlxhog.data.stream import StreamWriter, append_examples
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import CheckpointError, ConfigError, EnvironmentLacks, WorkerFailed
from mlxhog.report.metrics import Progress, Result
from mlxhog.training import follow
from mlxhog.training.follow import Follower
from mlxhog.training.plan import make_plan
from tests.training.asking import LIMIT_S, Client
from tests.training.small import small_config

TOKENIZER = ByteTokenizer()
ROOT = Path(__file__).parents[2]


def following(tmp_path: Path, **options: object) -> TrainConfig:
    folder = tmp_path / "new"
    folder.mkdir(exist_ok=True)
    return small_config(tmp_path, follow=str(folder), **{"steps": None, **options})


def segments(directory: Path) -> list[StreamSegment]:
    return read_all(directory / "stream", verify=True)


def rows(directory: Path) -> list[bytes]:
    """The text of every published row, in order; BOS has no text."""
    text = []
    for segment in segments(directory):
        at = 0
        for n, _ in segment.rows:
            text.append(bytes(TOKENIZER.decode(segment.tokens[at : at + n].astype("int32"))))
            at += int(n)
    return text


def done(directory: Path) -> int:
    """Tickets of the stream that the last checkpoint counts as trained."""
    new_run = run.Run(directory)
    _, path = checkpoint.resumable(str(directory), new_run.directory.parent)
    position = checkpoint.load(path).state["ledgers"]["stream"]
    assert position["done"] == []
    return int(position["epoch"] * position["n"] + position["watermark"])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"waited for: {what}"
        time.sleep(0.02)


class Following(Client):
    """Acts on a run that follows, even before its first step; keeps its messages."""

    def __init__(self, config: TrainConfig, act: Callable[[Path], object]) -> None:
        super().__init__(config, act, steps=0)
        self.messages: list[str] = []

    def __call__(self, progress: Progress) -> None:
        self.messages += [progress.message] if progress.message else []
        super().__call__(progress)


def followed(config: TrainConfig, act: Callable[[Path], object]) -> tuple[Result, list[str]]:
    def act_and_stop(directory: Path) -> None:
        try:
            act(directory)
        finally:
            ask(directory, "stop")

    client = Following(config, act_and_stop)
    result = train(config, observer=client)
    client.finish()
    return result, client.messages


def trained_all(directory: Path, rows_there: int) -> Callable[[], bool]:
    """Whether n rows are published, and a checkpoint counts all tickets as trained."""

    def condition() -> bool:
        if len(rows(directory)) < rows_there:
            return False
        ask(directory, "checkpoint")
        return done(directory) == segments(directory)[-1].end_ticket

    return condition


@pytest.fixture
def looking_often(monkeypatch) -> None:
    for name in ("LOOK_S", "SETTLED_S"):
        monkeypatch.setattr(follow, name, 0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("looking_often")
def test_files_and_examples_that_come_are_trained_once_in_order(tmp_path):
    config = following(tmp_path, workers="mlx:cpu*2", batch_size=2)
    folder = Path(config.follow)
    (folder / "first.txt").write_text("the first text " * 3)

    def feed(directory: Path) -> None:
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
    assert result.steps == segments(directory)[-1].end_ticket == done(directory)
    assert any("until mlxhog stop or Ctrl-C" in message for message in messages)
    assert sum("waiting for new text" in message for message in messages) >= 2
    wait_again, _ = followed(replace(config, resume=result.run), lambda directory: None)
    assert wait_again.steps == result.steps  # nothing new, so nothing is trained


@pytest.mark.slow
@pytest.mark.usefixtures("looking_often")
def test_a_run_trains_on_its_text_and_on_what_comes_in_turn(tmp_path):
    first = train(small_config(tmp_path, steps=7))
    config = replace(following(tmp_path), resume=first.run)  # which has used up its own budget
    (Path(str(config.follow)) / "new.txt").write_text("something new " * 30)
    second, _ = followed(config, lambda run: wait_for(trained_all(run, 14), "the file"))
    assert second.steps == 7 + 7
    third = train(replace(config, resume=first.run, follow=None, steps=5))
    ledgers = checkpoint.load(Path(str(third.checkpoint))).state["ledgers"]
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
def test_acknowledged_text_is_trained_whichever_process_is_killed(tmp_path):
    script = tmp_path / "follow.py"
    script.write_text(RUN)
    config = following(tmp_path)
    sent: list[str] = []

    def start(*resume: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(tmp_path), *resume]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def send(directory: Path, count: int) -> None:
        for _ in range(count):
            text = f"number {len(sent)}"
            append_examples(directory, [{"prompt": "say", "answer": f" {text}"}], TOKENIZER)
            sent.append(f"say {text}")
            (Path(str(config.follow)) / f"{len(sent):04}.txt").write_text(f"file {len(sent)}")

    def seen(directory: Path) -> set[str]:
        return {row.decode() for row in rows(directory)}

    process = start()
    try:
        wait_for(lambda: (tmp_path / "runs").is_dir(), "the run")
        wait_for(lambda: bool(run.list_runs(tmp_path / "runs")), "the run")
        directory = run.find("latest", tmp_path / "runs").directory
        wait_for((directory / "stream" / "stream.json").exists, "its stream")
        for some in (0, 10, 5):  # the first kill may come before the first step
            send(directory, 10)
            wait_for(lambda n=some: len(seen(directory) & set(sent)) >= n, "some of them")
            send(directory, 10)
            process.send_signal(signal.SIGKILL)
            process.wait()
            send(directory, 3)  # no process is there
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
    assert done(directory) == segments(directory)[-1].end_ticket


@pytest.fixture
def follower(tmp_path, monkeypatch) -> Any:
    """The follower of a folder whose files are complete at once."""
    monkeypatch.setattr(follow, "SETTLED_S", 0.0)
    folder = tmp_path / "new"
    folder.mkdir()
    writer = StreamWriter(tmp_path, TOKENIZER, seq_len=16, batch_size=1)
    return Follower(folder, writer)


def test_a_file_that_is_not_text_is_reported_once_and_the_others_are_trained(follower, tmp_path):
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
    assert [text.partition(" ")[0] for text in messages] == ["b.txt", "c.jsonl", "d.jsonl"]
    assert "not text: a zero byte" in messages[0]
    assert "a row of the run has at most 16" in messages[1]
    assert not follower.look()
    again = Follower(follower.folder, StreamWriter(tmp_path, TOKENIZER, seq_len=16, batch_size=1))
    assert not again.look()
    (follower.folder / "a.txt").write_bytes(b"changed")
    assert not follower.look()
    assert not follower.look()
    assert list(follower.messages)[3:] == [
        "a.txt has changed since it was read; only new files are trained"
    ]


def test_a_name_that_is_not_utf8_is_named_once_and_all_others_are_trained(follower, tmp_path):
    for name in (b"caf\xe9.txt", b"fold\xff/b.txt", b"a.txt"):
        path = Path(os.fsdecode(bytes(follower.folder) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"good")
    append_examples(accepting(tmp_path), [{"prompt": "say", "answer": " it"}], TOKENIZER)
    assert follower.look()
    assert not follower.look()
    assert rows(tmp_path) == [b"good", b"say it"]
    assert sorted(follower.messages) == [
        r"caf\xe9.txt is left out: its name is not UTF-8; rename it",
        r"fold\xff/b.txt is left out: its name is not UTF-8; rename it",
    ]


def accepting(run: Path) -> Path:
    StreamWriter(run, TOKENIZER, seq_len=16, batch_size=1).accept_examples()
    return run


def test_an_irregular_file_is_never_opened_and_is_reported_once(follower, tmp_path):
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


def test_a_pipe_in_place_of_a_file_delays_nothing(follower, tmp_path, monkeypatch):
    (follower.folder / "a.txt").write_text("a file")
    settled = follower._settled()
    monkeypatch.setattr(follower, "_settled", lambda: settled)
    (follower.folder / "a.txt").unlink()
    os.mkfifo(follower.folder / "a.txt")
    assert follower.look()
    assert rows(tmp_path) == []
    assert "not a regular file" in follower.messages[0]


def packed(suffix: str, text: bytes) -> bytes:
    if suffix == ".gz":
        return gzip.compress(text)
    if suffix == ".xz":
        return lzma.compress(text)
    zstandard = pytest.importorskip("zstandard")
    return bytes(zstandard.compress(text))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_small_file_that_unpacks_to_more_than_the_limit_is_left_out(
    follower, tmp_path, monkeypatch, suffix, kind
):
    monkeypatch.setattr(follower, "_bounds", replace(follower._bounds, most=100_000))
    line = b'{"text": "word word"}\n'
    for name, size in (("bomb", 200_000), ("fits", 90_000)):
        path = follower.folder / f"{name}{kind}{suffix}"
        path.write_bytes(packed(suffix, line * (size // len(line))))
        assert path.stat().st_size < 10_000
    assert follower.look()
    (message,) = follower.messages
    assert message.startswith("bomb")
    assert "it holds more than 100,000 bytes, unpacked" in message
    expected = 90_000 // len(line) * (len(line) if kind == ".txt" else len(b"word word"))
    bytes_trained = sum(map(len, rows(tmp_path)))
    assert expected <= bytes_trained <= 1.1 * expected  # neighbouring rows overlap


def test_a_table_whose_few_texts_stand_in_many_rows_is_left_out(follower, tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(follower, "_bounds", replace(follower._bounds, most=100_000))
    for name, count in (("bomb", 500), ("fits", 20)):
        table = pyarrow.table({"text": ["word " * 200] * count, "number": range(count)})
        parquet.write_table(table, follower.folder / f"{name}.parquet")
    assert follower.look()
    (message,) = follower.messages
    assert message.startswith("bomb.parquet is left out: it holds more than 100,000 bytes")
    assert sum(map(len, rows(tmp_path))) >= 20_000


@pytest.mark.slow
def test_reading_a_large_file_takes_little_more_memory_than_its_text(tmp_path):
    """In its own process, since a process keeps its peak memory."""
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


def test_a_file_that_is_being_read_at_the_end_is_left_for_the_resume(follower, tmp_path):
    for name in ("a", "b"):
        (follower.folder / f"{name}.txt").write_text(name * 2000)
    reading, ended = threading.Event(), threading.Event()
    real = follower._rows

    def slow(path: Path) -> Iterator[TrainingRow]:
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


def new_follower(folder: Path, run: Path) -> Follower:
    return Follower(folder, StreamWriter(run, TOKENIZER, seq_len=16, batch_size=1))


def test_a_disk_that_does_not_answer_does_not_delay_the_end(follower, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "LEAVE_S", 0.01)
    (follower.folder / "a.txt").write_text("text")
    reading, answers = threading.Event(), threading.Event()
    real = follower._rows

    def hangs(path: Path) -> Iterator[TrainingRow]:
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
    assert rows(tmp_path) == [b"text"]  # the late one has published nothing


def test_a_reader_that_fails_in_its_own_way_costs_its_file_alone(follower, tmp_path):
    (follower.folder / "a.txt").write_text("bad")
    (follower.folder / "b.txt").write_text("good")
    real = follower._rows

    def fails(path: Path) -> Iterator[TrainingRow]:
        yield from real(path)
        if path.name == "a.txt":
            raise RuntimeError("what no one has thought of")

    follower._rows = fails
    assert follower.look()
    assert rows(tmp_path) == [b"good"]
    assert list(follower.messages) == [
        "a.txt is left out: RuntimeError: what no one has thought of"
    ]


@pytest.mark.parametrize("lack", [EnvironmentLacks("reading it needs a package"), MemoryError()])
def test_a_file_that_the_machine_cannot_read_now_is_read_when_the_run_is_resumed(
    follower, tmp_path, lack
):
    (follower.folder / "a.txt").write_text("later")
    (follower.folder / "b.txt").write_text("good")
    real = follower._rows

    def fails(path: Path) -> Iterator[TrainingRow]:
        yield from real(path)
        if path.name == "a.txt":
            raise lack

    follower._rows = fails
    assert follower.look()
    assert not follower.look()
    assert rows(tmp_path) == [b"good"]
    (message,) = follower.messages
    assert message.startswith("a.txt is left out until the run is resumed: ")
    again = Follower(follower.folder, StreamWriter(tmp_path, TOKENIZER, seq_len=16, batch_size=1))
    assert again.look()
    assert rows(tmp_path) == [b"good", b"later"]


@pytest.mark.slow
@pytest.mark.usefixtures("looking_often")
def test_a_fault_of_the_follower_ends_the_run_with_a_checkpoint(tmp_path, monkeypatch):
    config = following(tmp_path, workers="mlx:cpu")
    (Path(str(config.follow)) / "a.txt").write_text("some text " * 30)
    look, steps = Follower.look, threading.Event()

    def faulty(self: Follower) -> bool:
        if steps.is_set():
            raise LookupError("there is no such thing")
        return look(self)

    def observe(progress: Progress) -> None:
        if progress.step:
            steps.set()

    monkeypatch.setattr(Follower, "look", faulty)
    with pytest.raises(WorkerFailed, match="LookupError: there is no such thing.*--resume"):
        train(config, observer=observe)
    assert run.find("latest", tmp_path / "runs").read_status()["status"] == "failed"


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


def test_a_file_that_still_grows_is_left_until_it_stands_still(follower, tmp_path, monkeypatch):
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


def test_following_is_for_workers_that_take_any_batch(tmp_path):
    others = ({"strategy": "sync"}, {"async_after": 0.5}, {"blocks": "disjoint"})
    for options in others:
        with pytest.raises(ConfigError, match="follow: is for lock-free workers"):
            following(tmp_path, **options)
    config = replace(following(tmp_path), follow=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no folder .*nowhere"):
        make_plan(config)
