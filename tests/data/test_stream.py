"""Segments of text that arrives: append-only, whole or absent, each row trained as it stands."""

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mlxhog.data import drafts
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.data.segments import SourceFile, StreamSegment, TrainingRow
from mlxhog.data.stream import (
    TICKETS,
    StreamBatches,
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


def opened(run: Path, batch_size: int = 2, seq_len: int = 8) -> StreamWriter:
    writer = StreamWriter(run, TOKENIZER, seq_len=seq_len, batch_size=batch_size)
    writer.accept_examples()
    return writer


def publish(
    writer: StreamWriter,
    rows: Iterable[TrainingRow],
    sources: Sequence[SourceFile],
    examples_end: int,
) -> None:
    with writer.draft() as draft:
        for row in rows:
            draft.add(row)
        writer.publish(draft, sources, examples_end)


def batches(run: Path) -> StreamBatches:
    example = Batch(np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32), 4)
    return StreamBatches(run / "stream", TOKENIZER.byte_lengths().astype(np.int64), example)


def rows_of(*texts: str, seq_len: int = 8) -> list[TrainingRow]:
    return [row for text in texts for row in document_rows(text.encode(), TOKENIZER, seq_len)]


def labels(batch: Batch) -> list[bytes]:
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
    assert writer.end == 2  # of two rows, and one
    before = [labels(reader.at(0, k)) for k in range(2)]
    publish(writer, [], [SourceFile("bad.txt", 1, 2, "it is binary")], 0)
    publish(writer, rows_of("four"), [], 7)
    again = opened(tmp_path, batch_size=5)  # of another batch size from now on
    publish(again, rows_of(*"abcdef"), [], 7)
    assert (again.end, again.examples_end, set(again.sources)) == (5, 7, {"a.txt", "bad.txt"})
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


def test_a_segment_whose_publishing_was_cut_short_is_not_there(tmp_path):
    writer = opened(tmp_path)
    publish(writer, rows_of("one"), [], 0)
    for suffix in (".bin", ".rows"):  # what a kill before the rename leaves
        (tmp_path / "stream" / f"00000002{suffix}").write_bytes(b"12345")
    again = opened(tmp_path)
    assert again.end == 1
    publish(again, rows_of("two"), [], 0)
    assert labels(batches(tmp_path).at(0, 1)) == [b"two"]


@each_of("suffix", [".bin", ".rows", ".json"])
def test_a_damaged_segment_is_named(tmp_path, suffix):
    publish(opened(tmp_path), rows_of("one", "two"), [], 0)
    path = tmp_path / "stream" / f"00000001{suffix}"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="00000001.json"):
        opened(tmp_path)
    path.write_bytes(content[:-4])
    with pytest.raises(DataError, match="00000001.json"):
        StreamSegment.read(tmp_path / "stream" / "00000001.json")


HEADER = {"first_ticket": 0, "batch_size": 2, "tokens": 10, "rows": 2, "examples_end": 0}


@each_of("key", [*HEADER, "sources", "sha256", "format"])
@each_of("value", [0, -1, 10**18, 10**40, 1.5, True, "2", None, [], [1], {"name": 3}, [{"x": 1}]])
def test_whatever_a_header_says_is_refused_in_words(tmp_path, key, value):
    publish(opened(tmp_path), rows_of("one", "two"), [SourceFile("a.txt", 1, 2)], 0)
    path = tmp_path / "stream" / "00000001.json"
    header = json.loads(path.read_text())
    assert {name: header[name] for name in HEADER} == HEADER
    if value == 0 and key in ("first_ticket", "examples_end") or (key, value) == ("sources", []):
        return  # which are true, or harmless
    path.write_text(json.dumps({**header, key: value}))
    with pytest.raises(DataError, match="the stream of this run is damaged"):
        opened(tmp_path)
    if key not in ("examples_end", "sha256"):  # which workers do not look at
        with pytest.raises(DataError):
            batches(tmp_path).at(0, 0)


@each_of("row", [(0, 0), (-3, 0), (1, 0), (2**62, 0), (5, -1), (5, 4), (5, 2**62), (4, 0), (6, 0)])
def test_rows_that_are_no_sequences_are_refused_in_words(tmp_path, row):
    publish(opened(tmp_path), rows_of("one", "two"), [], 0)
    np.array([row, (5, 0)], "<i8").tofile(tmp_path / "stream" / "00000001.rows")
    with pytest.raises(DataError, match="do not cut 10 tokens into sequences"):
        batches(tmp_path).at(0, 0)


@each_of("value", [0, -1, 10**40, 1.5, True, "8", None, [8]])
def test_a_seq_len_that_is_none_is_refused_in_words(tmp_path, value):
    opened(tmp_path)
    (tmp_path / "stream" / "stream.json").write_text(json.dumps({"seq_len": value}))
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


def test_a_segment_that_is_missing_is_named(tmp_path):
    writer = opened(tmp_path)
    for text in ("one", "two", "three"):
        publish(writer, rows_of(text), [], 0)
    (tmp_path / "stream" / "00000002.json").unlink()
    with pytest.raises(DataError, match="00000002.json is missing"):
        opened(tmp_path)


def test_what_cannot_be_read_back_gets_no_name(tmp_path):
    writer = opened(tmp_path)
    with pytest.raises(DataError, match="half a character"):
        publish(writer, rows_of("one"), [SourceFile("caf\udce9.txt", 1, 2)], 0)
    assert [path.name for path in (tmp_path / "stream").iterdir()] == ["stream.json"]
    publish(writer, rows_of("two"), [], 0)
    assert labels(batches(tmp_path).at(0, 0)) == [b"two"]


def test_a_segment_whose_name_could_not_be_flushed_is_not_there(tmp_path, monkeypatch):
    def refused(folder: Path) -> None:
        raise OSError(5, os.strerror(5))

    writer = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(drafts, "sync", refused)
        with pytest.raises(EnvironmentLacks, match="reports an error"):
            publish(writer, rows_of("one"), [], 0)
    with pytest.raises(DataError, match="not published"):
        batches(tmp_path).at(0, 0)
    publish(writer, rows_of("two"), [], 0)
    assert labels(batches(tmp_path).at(0, 0)) == [b"two"]


# -- merging ---------------------------------------------------------------------------------------


def many(run: Path) -> list[list[bytes]]:
    """Publish many small segments, of changing batch sizes; returns the rows of every ticket."""
    for k in range(2 * drafts.FEW):
        writer = opened(run, batch_size=1 + k % 3)
        append_examples(run, [{"prompt": "", "answer": str(k)}], TOKENIZER)
        end = (run / "stream" / "examples.jsonl").stat().st_size
        texts = [f"{k}.{n}" for n in range(k % 5)]
        publish(writer, rows_of(*texts), [SourceFile(f"{k}.txt", k, k)], end)
    return tickets(run, writer.end)


def tickets(run: Path, end: int) -> list[list[bytes]]:
    reader = batches(run)
    return [labels(reader.at(0, k)) for k in range(end)]


def state(writer: StreamWriter) -> tuple[int, int, dict[str, SourceFile]]:
    return writer.end, writer.examples_end, writer.sources


def test_many_small_segments_are_merged_and_every_ticket_keeps_its_rows(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(drafts, "merge", lambda folder, known: known)
        before = many(tmp_path)
        unmerged = state(opened(tmp_path))
    merged = opened(tmp_path)
    assert state(merged) == unmerged
    assert {path.name for path in (tmp_path / "stream").iterdir()} == {
        *("stream.json", "examples.jsonl"),
        *(f"00000001-00000064{suffix}" for suffix in (".json", ".bin", ".rows")),
    }
    assert tickets(tmp_path, merged.end) == before
    publish(merged, rows_of("next"), [], merged.examples_end)
    assert labels(batches(tmp_path).at(0, len(before))) == [b"next"]
    assert opened(tmp_path).end == len(before) + 1


def test_segments_that_are_merged_are_merged_again_with_others(tmp_path):
    """Opening merges as soon as there are enough."""
    many(tmp_path)
    names = sorted(path.name for path in (tmp_path / "stream").glob("*.json"))
    assert names[0].startswith("00000001-000000")
    assert len(names) < drafts.FEW + 3


def test_large_segments_are_left_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "MERGED_TOKENS", 100)
    writer = opened(tmp_path)
    for _ in range(drafts.FEW + 1):
        publish(writer, rows_of("a text of 20 letters", seq_len=64), [], 0)
    opened(tmp_path)
    assert len(list((tmp_path / "stream").glob("0*.json"))) == drafts.FEW + 1


class Died(BaseException):
    pass


@pytest.mark.slow
def test_whoever_is_killed_while_merging_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "FEW", 4)
    original = tmp_path / "original"
    original.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(drafts, "merge", lambda folder, known: known)
        before = many(original)
        unmerged = state(opened(original))
    for moment in itertools.count():
        run = tmp_path / f"{moment}"
        shutil.copytree(original, run)
        with monkeypatch.context() as patch:
            left = iter(range(moment))
            for name in ("replace", "unlink"):
                patch.setattr(os, name, partial(dies_at_the_end, left, getattr(os, name)))
            with contextlib.suppress(Died):
                opened(run)
                break
        assert tickets(run, unmerged[0]) == before
        after = opened(run)
        assert state(after) == unmerged
        assert tickets(run, after.end) == before
        assert len(list((run / "stream").iterdir())) == 5
    assert moment > 3 * 2 * drafts.FEW


def dies_at_the_end(left: Iterator[int], real: Callable[..., None], *words: object) -> None:
    if next(left, None) is None:
        raise Died
    real(*words)


@pytest.mark.slow
def test_a_full_disk_leaves_segments_unmerged(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(drafts, "merge", lambda folder, known: known)
        before = many(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "write_synced", full)
        assert opened(tmp_path).end == len(before)
    assert tickets(tmp_path, len(before)) == before
    assert not list((tmp_path / "stream").glob("*.part"))


def test_what_killed_writers_left_is_swept_and_files_of_others_stay(tmp_path):
    publish(opened(tmp_path), rows_of("one"), [], 0)
    folder = tmp_path / "stream"
    ours = ("00000002.bin", "00000002.json.77.0.part", "00000001-00000009.rows.5.part")
    others = ("notes.part", "00000002.bin.part", "00000001.bin.bak", "x00000002.bin.7.part")
    for name in (*ours, *others):
        (folder / name).write_text("x")
    before = {path.name for path in folder.iterdir()}
    opened(tmp_path)
    assert before - {path.name for path in folder.iterdir()} == set(ours)


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
    publish(writer, rows_of("one"), [], 0)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("mlxhog.data.drafts.write_synced", full)
    with pytest.raises(EnvironmentLacks, match="disk"):
        publish(writer, rows_of("two"), [], 0)
    assert (writer.end, opened(tmp_path).end) == (1, 1)
    monkeypatch.setattr("mlxhog.files.durable.flush", full)
    with pytest.raises(EnvironmentLacks, match="disk"):
        append_examples(tmp_path, [{"prompt": "a", "answer": "b"}], TOKENIZER)
    assert (tmp_path / "stream" / "examples.jsonl").read_bytes() == b""
