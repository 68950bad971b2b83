"""Text that arrives: append-only, whole or absent, each row trained as it stands."""

import errno
import itertools
import json
import os
import pickle
from functools import partial

import numpy as np
import pytest

from mlxhog.data.batch import IGNORED, Batch
from mlxhog.data.stream import (
    SourceFile,
    Stream,
    StreamBatches,
    StreamWriter,
    append_examples,
    document_rows,
    example_rows,
    read_example,
)
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import CheckpointError, DataError, EnvironmentLacks, RunError
from tests.another_process import Running
from tests.pairs import each_of
from tests.threads import LIMIT_S

TOKENIZER = ByteTokenizer()
BOS = TOKENIZER.bos
EXAMPLE = {"prompt": "a", "answer": "b"}
PART = '{"end_ticket": 1, "examples_end": 0, "sources": []}'


def opened(run, batch_size=2, seq_len=8):
    writer = StreamWriter(run, TOKENIZER, seq_len=seq_len, batch_size=batch_size)
    writer.accept_examples()
    return writer


def publish(writer, rows, sources=(), examples_end=0):
    writer.publish([*rows], sources, examples_end)


def batches(run, frozen=False):
    example = Batch(np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32), 4)
    lengths = TOKENIZER.byte_lengths().astype(np.int64)
    return StreamBatches(run / "stream", lengths, example, frozen=frozen)


def rows_of(*texts, seq_len=8):
    return [row for text in texts for row in document_rows(text.encode(), TOKENIZER, seq_len)]


def labels(batch):
    """The text that each row of a batch is trained to say."""
    return [bytes(TOKENIZER.decode(row[row != IGNORED])) for row in batch.y]


@each_of("text", ["a", "abcdefg", "abcdefgh", "abcdefghi", "é\n" * 99])
def test_every_token_of_a_document_is_a_label_once(text):
    rows = rows_of(text)
    trained = np.concatenate([row.ids[1:] for row in rows])
    assert trained.tolist() == [*text.encode(), BOS]
    assert [row.ids[0] for row in rows] == [BOS, *trained[7 : len(trained) - 1 : 8]]
    assert all(2 <= len(row.ids) <= 9 and row.masked == 0 for row in rows)


def test_an_example_is_trained_on_its_answer_and_its_end_alone(tmp_path):
    example = read_example({"prompt": "ab ", "answer": "xyz"}, "it")
    publish(opened(tmp_path), example_rows(example, TOKENIZER, 8, "it"))
    batch = batches(tmp_path).at(0, 0)
    assert batch.x[0, :7].tolist() == [BOS, *b"ab xyz"]
    assert batch.y[0, :7].tolist() == [IGNORED, IGNORED, IGNORED, *b"xyz", BOS]
    assert (batch.y[0, 7:] == IGNORED).all()
    assert batch.n_bytes == 3
    publish(opened(tmp_path), rows_of("text"))
    assert [batches(tmp_path, frozen=True).at(0, ticket).frozen for ticket in (0, 1)] == [1, 0]
    assert not batch.frozen


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


def test_tickets_count_through_parts_and_never_change_their_rows(tmp_path):
    writer, reader = opened(tmp_path), batches(tmp_path)
    (tmp_path / "stream" / "examples.jsonl").write_bytes(b"{}\n{}\n\n")
    publish(writer, rows_of("one", "two", "three"), [SourceFile("a.txt", 1, 2)])
    assert writer.last.end_ticket == 2  # of two rows, and one
    before = [labels(reader.at(0, k)) for k in range(2)]
    publish(writer, [], [SourceFile("bad.txt", 1, 2, "it is binary")])
    publish(writer, rows_of("four"), [], 7)
    with (tmp_path / "stream" / "rows.jsonl").open("ab") as file:  # as a kill leaves it
        file.write(b"[[0, 256, 120, 256]]\n[[0, 256, 1")
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


@each_of("lines", ["x", "[[0, 256, 97]]\n{}", '[[0, "a", 97]]\n' + PART])
def test_a_damaged_stream_is_refused_in_words(tmp_path, lines):
    opened(tmp_path)
    (tmp_path / "stream" / "rows.jsonl").write_text(f"{lines}\n")
    with pytest.raises(DataError, match="the stream of this run is damaged"):
        batches(tmp_path).at(0, 0)


def test_a_run_keeps_the_longest_examples_that_it_accepts(tmp_path):
    opened(tmp_path, seq_len=8)
    with pytest.raises(CheckpointError, match="--seq-len 8 or more"):
        opened(tmp_path, seq_len=7)


class Died(BaseException):
    """A process that ends: nothing of it runs afterwards."""


FULL = partial(OSError, errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("end", [Died, FULL], ids=["death", "full disk"])
def test_a_part_whose_publishing_ends_at_any_call_is_whole_or_absent(tmp_path, end):
    ended = True
    for moment in itertools.count():
        run = tmp_path / f"{moment}"
        run.mkdir()
        publish(opened(run), rows_of("one"))
        writer, calls = opened(run), iter(range(moment))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("write", "fsync"):
                patch.setattr(os, name, partial(fails_at_the_end, calls, end, getattr(os, name)))
            if end is Died:
                patch.setattr(os, "ftruncate", lambda *_: None)
            try:
                publish(writer, rows_of("two", "three", "four"), [SourceFile("a.txt", 1, 2)])
                ended = False
            except (Died, EnvironmentLacks):
                pass
        if end is Died:
            writer = opened(run)
        elif ended:
            assert writer.last.end_ticket == 1
        publish(writer, rows_of("next"))
        n_tickets = Stream(run / "stream").update().last.end_ticket
        texts = [labels(batches(run).at(0, k)) for k in range(n_tickets)]
        assert texts in (
            [[b"one"], [b"next"]],
            [[b"one"], [b"two", b"three"], [b"four"], [b"next"]],
        )
        if not ended:
            break
    assert moment > 1


def fails_at_the_end(calls, end, real, *words):
    if next(calls, None) is None:
        raise end()
    return real(*words)


def append_many(run, name):
    for k in range(50):
        append_examples(run, [{"prompt": f"{name}", "answer": f"{k}"}], TOKENIZER)


def test_processes_that_append_at_once_lose_nothing_also_behind_a_torn_line(tmp_path):
    with pytest.raises(RunError, match="--follow FOLDER"):
        append_examples(tmp_path, [EXAMPLE], TOKENIZER)
    opened(tmp_path)
    path = tmp_path / "stream" / "examples.jsonl"
    path.write_bytes(b'{"prompt": "c", "an')
    processes = [Running(append_many, tmp_path, k) for k in range(3)]
    assert [process.wait(LIMIT_S) for process in processes] == [0, 0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    written = sorted((one["prompt"], int(one["answer"])) for one in lines)
    assert written == [(str(n), k) for n in range(3) for k in range(50)]


@each_of("content", ["", "[]", "{}", '{"seq_len": "x"}', '{"seq_len": null}', "[[1]]"])
def test_a_damaged_description_of_a_stream_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "stream").mkdir()
    (tmp_path / "stream" / "stream.json").write_text(content)
    with pytest.raises(DataError, match=r"stream\.json is damaged"):
        append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)


def test_the_stream_of_a_run_that_is_renamed_is_read_and_continued_where_it_is(tmp_path):
    (run := tmp_path / "run").mkdir()
    writer = opened(run)
    publish(writer, rows_of("abc", "def"))
    reader = batches(run)
    run.rename(renamed := tmp_path / "renamed")
    publish(writer, rows_of("ghi", "jkl"))
    assert [labels(reader.at(0, k))[0][:3] for k in range(2)] == [b"abc", b"ghi"]
    sent = pickle.loads(pickle.dumps(writer.open_folder))  # to a worker that starts now
    assert (sent.path, writer.folder) == (renamed / "stream", renamed / "stream")
