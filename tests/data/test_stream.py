"""Segments of text that arrives: append-only, whole or absent, each row trained as it stands."""

import itertools
import json
import multiprocessing
import os
from functools import partial

import numpy as np
import pytest

from mlxhog.data.batch import IGNORED, Batch
from mlxhog.data.segments import TICKETS, SourceFile, StreamBatches
from mlxhog.data.stream import (
    StreamWriter,
    _pieces,
    append_examples,
    document_rows,
    example_rows,
    read_example,
)
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import DataError, EnvironmentLacks, RunError
from tests.pairs import each_of

TOKENIZER = ByteTokenizer()
BOS = TOKENIZER.bos


def opened(run, batch_size=2, seq_len=8):
    writer = StreamWriter(run, TOKENIZER, seq_len=seq_len, batch_size=batch_size)
    writer.accept_examples()
    return writer


def publish(writer, rows, sources, examples_end):
    with writer.draft() as draft:
        for row in rows:
            draft.add(row)
        writer.publish(draft, sources, examples_end)


def batches(run):
    example = Batch(np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32), 4)
    return StreamBatches(run / "stream", TOKENIZER.byte_lengths().astype(np.int64), example)


def rows_of(*texts, seq_len=8):
    return [row for text in texts for row in document_rows(text.encode(), TOKENIZER, seq_len)]


def labels(batch):
    """The text that each row of a batch is trained to say."""
    return [bytes(TOKENIZER.decode(row[row != IGNORED])) for row in batch.y]


@each_of("n", [1, 7, 8, 9, 16, 40])
def test_every_token_of_a_document_is_a_label_once(n):
    text = bytes(range(97, 97 + 20)) * 2
    rows = list(document_rows(text[:n], TOKENIZER, 8))
    said = np.concatenate([row.ids[1:] for row in rows])
    assert said.tolist() == [*text[:n], BOS]
    assert [row.ids[0] for row in rows] == [BOS, *said[7 : len(said) - 1 : 8]]
    assert all(2 <= len(row.ids) <= 9 and row.masked == 0 for row in rows)


def test_an_example_is_trained_on_its_answer_and_its_end_alone(tmp_path):
    example = read_example({"prompt": "ab ", "answer": "xyz"}, "it")
    (row,) = example_rows(example, TOKENIZER, 8, "it")
    assert row.ids.tolist() == [BOS, *b"ab xyz", BOS]
    writer = opened(tmp_path)
    publish(writer, [row], [], 0)
    batch = batches(tmp_path).at(0, 0)
    assert batch.x[0, :7].tolist() == [BOS, *b"ab xyz"]
    assert batch.y[0, :7].tolist() == [IGNORED, IGNORED, IGNORED, *b"xyz", BOS]
    assert (batch.y[0, 7:] == IGNORED).all()
    assert batch.n_bytes == 3


@each_of(
    ("record", "message"),
    [
        ({"prompt": "a"}, 'line 3 is {"prompt": "a"}; expected prompt and answer, or messages'),
        ({"text": "a"}, "expected prompt and answer, or messages"),
        ({"prompt": 1, "answer": "b"}, '"prompt" is a number, expected text'),
        ({"prompt": "a", "answer": ""}, "the completion is empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message of the assistant"),
        ({"prompt": "a", "answer": "b", "lr": 1}, 'has a key "lr"'),
        ({"prompt": "1234 ", "answer": "123"}, "has 9 tokens, and a row of the run has at most 8"),
    ],
)
def test_what_is_no_example_is_named(record, message, tmp_path):
    with pytest.raises(DataError) as refused:
        list(example_rows(read_example(record, "line 3"), TOKENIZER, 8, "line 3"))
    assert message in str(refused.value).replace("'", '"')
    opened(tmp_path)
    with pytest.raises(DataError):
        append_examples(tmp_path, [record], TOKENIZER)
    assert not (tmp_path / "stream" / "examples.jsonl").exists()


def test_half_a_character_is_refused_since_the_run_could_not_read_it(tmp_path):
    opened(tmp_path)
    with pytest.raises(DataError, match="example 1 is refused"):
        append_examples(tmp_path, [{"prompt": "", "answer": "\ud800"}], TOKENIZER)
    assert not (tmp_path / "stream" / "examples.jsonl").exists()


def test_each_answer_of_a_conversation_is_a_row_behind_as_much_of_the_text_before_as_fits():
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in talk]
    example = read_example({"messages": messages}, "it")
    text = b"User: a\nAssistant: b\nUser: c\nAssistant: d"
    for seq_len in (len(text) + 1, 30):
        rows = list(example_rows(example, TOKENIZER, seq_len, "it"))
        assert [row.ids.tolist() for row in rows] == [
            [BOS, *text[: text.index(b" b") + 2], BOS],
            [*[BOS, *text, BOS][-seq_len - 1 :]],
        ]
        assert [bytes(row.ids[row.masked + 1 : -1].tolist()) for row in rows] == [b" b", b" d"]
    with pytest.raises(DataError, match="it has 21 tokens, and a row of the run has at most 20"):
        list(example_rows(example, TOKENIZER, 20, "it"))


def test_tickets_count_through_segments_and_never_change_their_rows(tmp_path):
    writer, reader = opened(tmp_path), batches(tmp_path)
    (tmp_path / "stream" / "examples.jsonl").write_bytes(b"{}\n{}\n\n")
    publish(writer, rows_of("one", "two", "three"), [SourceFile("a.txt", 1, 2)], 0)
    assert writer.last.end_ticket == 2  # of two rows, and one
    before = [labels(reader.at(0, k)) for k in range(2)]
    publish(writer, [], [SourceFile("bad.txt", 1, 2, "it is binary")], 0)
    publish(writer, rows_of("four"), [], 7)
    again = opened(tmp_path, batch_size=5)  # of another batch size from now on
    publish(again, rows_of(*"abcdef"), [], 7)
    last = again.last
    assert (last.end_ticket, last.examples_end, set(again.sources)) == (5, 7, {"a.txt", "bad.txt"})
    for one in (reader, batches(tmp_path)):
        results = [labels(one.at(0, k)) for k in range(5)]
        assert results[:2] == before == [[b"one", b"two"], [b"three"]]
        assert results[2:] == [[b"four"], [b"a", b"b", b"c", b"d", b"e"], [b"f"]]
    with pytest.raises(DataError, match="not published"):
        reader.at(0, 5)


def test_tickets_go_on_beyond_what_an_epoch_is_called(tmp_path):
    writer = opened(tmp_path, batch_size=1)
    publish(writer, rows_of(*(f"{k}" for k in range(TICKETS + 3))), [], 0)
    assert labels(batches(tmp_path).at(1, 2)) == [str(TICKETS + 2).encode()]


@each_of("name", ["tokens.bin", "rows.bin", "segments.jsonl"])
@each_of("damage", ["changed", "shorter", "missing"])
def test_a_damaged_segment_is_refused_in_words(tmp_path, name, damage):
    publish(opened(tmp_path), rows_of("one", "two"), [], 0)
    path = tmp_path / "stream" / name
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    if damage == "missing":
        path.unlink()
        if name == "segments.jsonl":  # as if nothing had been published
            assert opened(tmp_path).last.end_ticket == 0
            return
    else:
        path.write_bytes(content if damage == "changed" else content[1:])
    with pytest.raises(DataError, match="the stream of this run is damaged"):
        opened(tmp_path)
    if damage == "missing":
        with pytest.raises(DataError, match="the stream of this run is damaged"):
            batches(tmp_path).at(0, 0)


LINE = {"rows": 2, "tokens": 10, "end_ticket": 1, "batch_size": 2, "examples_end": 0}


@each_of("key", [*LINE, "sources", "sha256"])
@each_of("value", [-1, 10**18, 10**40, 1.5, True, "2", None, [1], {"name": 3}, [{"x": 1}]])
def test_every_line_that_is_no_segment_is_refused_in_words(tmp_path, key, value):
    publish(opened(tmp_path), rows_of("one", "two"), [SourceFile("a.txt", 1, 2)], 0)
    path = tmp_path / "stream" / "segments.jsonl"
    line = json.loads(path.read_text())
    assert {name: line[name] for name in LINE} == LINE
    path.write_text(json.dumps({**line, key: value}) + "\n")
    with pytest.raises(DataError, match="the stream of this run is damaged"):
        opened(tmp_path)


@each_of("row", [(0, 0), (-3, 0), (1, 0), (2**62, 0), (5, -1), (5, 4), (5, 2**62)])
def test_rows_that_are_no_sequences_are_refused_in_words(tmp_path, row):
    publish(opened(tmp_path), rows_of("one", "two"), [], 0)
    np.array([row, (10, 0)], "<i8").tofile(tmp_path / "stream" / "rows.bin")
    with pytest.raises(DataError, match="are no sequences"):
        batches(tmp_path).at(0, 0)


@each_of("value", [0, -1, 10**40, 1.5, True, "8", None, [8]])
def test_a_seq_len_that_is_none_is_refused_in_words(tmp_path, value):
    opened(tmp_path)
    (tmp_path / "stream" / "stream.json").write_text(json.dumps({"format": 2, "seq_len": value}))
    with pytest.raises(RunError, match="stream.json cannot be read: seq_len"):
        append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    with pytest.raises(RunError, match="stream.json cannot be read: seq_len"):
        opened(tmp_path)


def test_a_stream_whose_examples_have_become_fewer_is_refused(tmp_path):
    """Those that come next would stand where others were taken, and be passed over."""
    writer = opened(tmp_path)
    append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    path = tmp_path / "stream" / "examples.jsonl"
    publish(writer, rows_of("one"), [], path.stat().st_size)
    opened(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="has 0 bytes"):
        opened(tmp_path)


def test_what_cannot_be_read_back_is_not_published(tmp_path):
    writer = opened(tmp_path)
    with pytest.raises(DataError, match="half a character"):
        publish(writer, rows_of("one"), [SourceFile("caf\udce9.txt", 1, 2)], 0)
    publish(writer, rows_of("two"), [], 0)
    assert labels(batches(tmp_path).at(0, 0)) == [b"two"]
    assert opened(tmp_path).last.end_ticket == 1


class Died(BaseException):
    pass


class Full(OSError):
    def __init__(self):
        super().__init__(28, os.strerror(28))


@pytest.mark.parametrize("end", [Died, Full])
def test_a_segment_whose_publishing_ends_at_any_call_is_whole_or_absent(tmp_path, end):
    """`Died` is a process that ends there: nothing of it runs afterwards."""
    ended = True
    for moment in itertools.count():
        run = tmp_path / f"{moment}"
        run.mkdir()
        publish(opened(run), rows_of("one"), [], 0)
        writer, calls = opened(run), iter(range(moment))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("write", "fsync"):
                patch.setattr(os, name, partial(fails_at_the_end, calls, end, getattr(os, name)))
            if end is Died:
                patch.setattr(os, "ftruncate", lambda *_: None)
                patch.setattr(writer, "_cut", lambda: None)
            try:
                publish(writer, rows_of("two", "three", "four"), [SourceFile("a.txt", 1, 2)], 0)
                ended = False
            except (Died, EnvironmentLacks):
                pass
        if end is Died:
            writer = opened(run)
        elif ended:
            assert writer.last.end_ticket == 1
        publish(writer, rows_of("next"), [], 0)
        said = [labels(batches(run).at(0, k)) for k in range(opened(run).last.end_ticket)]
        assert said in ([[b"one"], [b"next"]], [[b"one"], [b"two", b"three"], [b"four"], [b"next"]])
        if not ended:
            break
    assert moment > 3


def fails_at_the_end(calls, end, real, *words):
    if next(calls, None) is None:
        raise end()
    return real(*words)


def test_a_long_document_is_tokenized_in_pieces_and_no_byte_is_lost(monkeypatch):
    monkeypatch.setattr("mlxhog.data.stream.PIECE_BYTES", 16)
    text = "lines\nand words, é and Straße\n" * 9 + "x" * 60 + "é" * 40 + "\n"
    pieces = list(_pieces(text.encode()))
    assert b"".join(pieces) == text.encode()
    assert all(piece.decode() and len(piece) <= 16 for piece in pieces)
    rows = list(document_rows(text.encode(), TOKENIZER, 7))
    said = np.concatenate([row.ids[1:] for row in rows])
    assert said.tolist() == [*text.encode(), BOS]
    assert all(len(row.ids) == 8 for row in rows[:-1])
    assert list(_pieces(b"\x80" * 40))[0] == b"\x80" * 16


def test_examples_need_a_run_that_follows(tmp_path):
    with pytest.raises(RunError, match="--follow FOLDER"):
        append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    opened(tmp_path)
    with pytest.raises(DataError, match="expected prompt and answer"):
        append_examples(tmp_path, [["a", "b"]], TOKENIZER)


def test_a_torn_line_of_who_was_killed_is_no_part_of_the_next_example(tmp_path):
    opened(tmp_path)
    append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    path = tmp_path / "stream" / "examples.jsonl"
    path.write_bytes(path.read_bytes() + b'{"prompt": "c", "an')
    append_examples(tmp_path, [{"prompt": "d", "answer": "e"}], TOKENIZER)
    assert [json.loads(line)["prompt"] for line in path.read_text().splitlines()] == ["a", "d"]


def append_many(run, name):
    for k in range(50):
        append_examples(run, [{"prompt": f"{name}", "answer": f"{k}"}], TOKENIZER)


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    opened(tmp_path)
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=append_many, args=(tmp_path, k)) for k in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    lines = (tmp_path / "stream" / "examples.jsonl").read_text().splitlines()
    results = {(r["prompt"], r["answer"]) for r in map(json.loads, lines)}
    assert results == {(str(n), str(k)) for n in range(3) for k in range(50)}
    assert len(lines) == 150


def test_a_disk_without_room_stores_no_part_of_an_example(tmp_path, monkeypatch):
    opened(tmp_path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mlxhog.base.durable.flush", full)
    with pytest.raises(EnvironmentLacks, match="disk"):
        append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    assert (tmp_path / "stream" / "examples.jsonl").read_bytes() == b""
