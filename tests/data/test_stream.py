"""Segments of text that arrives: append-only, whole or absent, each row trained as it stands."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from mlxhog.data.batch import IGNORED, Batch
from mlxhog.data.stream import (
    TICKETS,
    Row,
    Segment,
    Source,
    StreamBatches,
    StreamWriter,
    append_examples,
    document_rows,
    example_row,
)
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import DataError, EnvironmentLacks, RunError
from tests.pairs import each_of

TOKENIZER = ByteTokenizer()
BOS = TOKENIZER.bos


def opened(run: Path, batch_size: int = 2, seq_len: int = 8) -> StreamWriter:
    writer = StreamWriter(run, TOKENIZER, seq_len=seq_len, batch_size=batch_size)
    writer.accept_examples()
    return writer


def batches(run: Path) -> StreamBatches:
    example = Batch(np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32), 4)
    return StreamBatches(run / "stream", TOKENIZER.byte_lengths().astype(np.int64), example)


def rows_of(*texts: str, seq_len: int = 8) -> list[Row]:
    return [row for text in texts for row in document_rows(text.encode(), TOKENIZER, seq_len)]


def labels(batch: Batch) -> list[bytes]:
    """The text that each row of a batch is trained to say."""
    return [bytes(TOKENIZER.decode(row[row != IGNORED])) for row in batch.y]


@each_of("n", [1, 7, 8, 9, 16, 40])
def test_every_token_of_a_document_is_a_label_once(n):
    text = bytes(range(97, 97 + 20)) * 2
    rows = document_rows(text[:n], TOKENIZER, 8)
    said = np.concatenate([row.ids[1:] for row in rows])
    assert said.tolist() == [*text[:n], BOS]
    assert [row.ids[0] for row in rows] == [BOS, *said[7 : len(said) - 1 : 8]]
    assert all(2 <= len(row.ids) <= 9 and row.masked == 0 for row in rows)


def test_an_example_is_trained_on_its_answer_and_its_end_alone(tmp_path):
    row = example_row({"prompt": "ab", "answer": "xyz"}, TOKENIZER, 8, "it")
    assert row.ids.tolist() == [BOS, *b"abxyz", BOS]
    writer = opened(tmp_path)
    writer.publish([row], [], 0)
    batch = batches(tmp_path).at(0, 0)
    assert batch.x[0, :6].tolist() == [BOS, *b"abxyz"]
    assert batch.y[0, :6].tolist() == [IGNORED, IGNORED, *b"xyz", BOS]
    assert (batch.y[0, 6:] == IGNORED).all()
    assert batch.n_bytes == 3


@each_of(
    ("record", "message"),
    [
        ({"prompt": "a"}, "answer is None, expected text"),
        ({"prompt": 1, "answer": "b"}, "prompt is 1, expected text"),
        ({"prompt": "a", "answer": ""}, "the answer is empty"),
        ({"prompt": "a", "answer": "b", "lr": 1}, 'has a key "lr"'),
        ({"prompt": "12345", "answer": "123"}, "has 9 tokens, the run trains on at most 8"),
        ({"prompt": "", "answer": "\ud800"}, "half a character"),
    ],
)
def test_what_is_no_example_is_named(record, message, tmp_path):
    with pytest.raises(DataError) as refused:
        example_row(record, TOKENIZER, 8, "line 3")
    assert message in str(refused.value).replace("'", '"')
    opened(tmp_path)
    with pytest.raises(DataError):
        append_examples(tmp_path, [record], TOKENIZER)
    assert not (tmp_path / "stream" / "examples.jsonl").exists()


def test_tickets_count_through_segments_and_never_change_their_rows(tmp_path):
    writer, reader = opened(tmp_path), batches(tmp_path)
    writer.publish(rows_of("one", "two", "three"), [Source("a.txt", 1, 2)], 0)
    assert writer.end == 2  # of two rows, and one
    before = [labels(reader.at(0, k)) for k in range(2)]
    writer.publish([], [Source("bad.txt", 1, 2, "it is binary")], 0)
    writer.publish(rows_of("four"), [], 7)
    again = opened(tmp_path, batch_size=5)  # of another batch size from now on
    again.publish(rows_of(*"abcdef"), [], 7)
    assert (again.end, again.examples_end, set(again.sources)) == (5, 7, {"a.txt", "bad.txt"})
    for one in (reader, batches(tmp_path)):
        results = [labels(one.at(0, k)) for k in range(5)]
        assert results[:2] == before == [[b"one", b"two"], [b"three"]]
        assert results[2:] == [[b"four"], [b"a", b"b", b"c", b"d", b"e"], [b"f"]]
    with pytest.raises(DataError, match="not published"):
        reader.at(0, 5)


def test_tickets_go_on_beyond_what_an_epoch_is_called(tmp_path):
    writer = opened(tmp_path, batch_size=1)
    writer.publish(rows_of(*(f"{k}" for k in range(TICKETS + 3))), [], 0)
    assert labels(batches(tmp_path).at(1, 2)) == [str(TICKETS + 2).encode()]


def test_a_segment_whose_publishing_was_cut_short_is_not_there(tmp_path):
    writer = opened(tmp_path)
    writer.publish(rows_of("one"), [], 0)
    for suffix in (".bin", ".rows"):  # what a kill before the rename leaves
        (tmp_path / "stream" / f"00000002{suffix}").write_bytes(b"12345")
    again = opened(tmp_path)
    assert again.end == 1
    again.publish(rows_of("two"), [], 0)
    assert labels(batches(tmp_path).at(0, 1)) == [b"two"]


@each_of("suffix", [".bin", ".rows", ".json"])
def test_a_damaged_segment_is_named(tmp_path, suffix):
    opened(tmp_path).publish(rows_of("one", "two"), [], 0)
    path = tmp_path / "stream" / f"00000001{suffix}"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="00000001.json"):
        opened(tmp_path)
    path.write_bytes(content[:-4])
    with pytest.raises(DataError, match="00000001.json"):
        Segment.read(tmp_path / "stream", 1)


def test_examples_need_a_run_that_follows(tmp_path):
    with pytest.raises(RunError, match="--follow FOLDER"):
        append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    opened(tmp_path)
    with pytest.raises(DataError, match="expected an object"):
        append_examples(tmp_path, [["a", "b"]], TOKENIZER)


def test_a_torn_line_of_who_was_killed_is_no_part_of_the_next_example(tmp_path):
    opened(tmp_path)
    append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    path = tmp_path / "stream" / "examples.jsonl"
    path.write_bytes(path.read_bytes() + b'{"prompt": "c", "an')
    append_examples(tmp_path, [{"prompt": "d", "answer": "e"}], TOKENIZER)
    assert [json.loads(line)["prompt"] for line in path.read_text().splitlines()] == ["a", "d"]


def append_many(run: Path, name: int) -> None:
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


def test_a_disk_without_room_keeps_what_is_there(tmp_path, monkeypatch):
    writer = opened(tmp_path)
    writer.publish(rows_of("one"), [], 0)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mlxhog.data.stream.write_synced", full)
    with pytest.raises(EnvironmentLacks, match="disk"):
        writer.publish(rows_of("two"), [], 0)
    assert (writer.end, opened(tmp_path).end) == (1, 1)
    monkeypatch.setattr("mlxhog.files.durable.flush", full)
    with pytest.raises(EnvironmentLacks, match="disk"):
        append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    assert (tmp_path / "stream" / "examples.jsonl").read_bytes() == b""
