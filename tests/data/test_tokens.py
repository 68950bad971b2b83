"""Token files, their rows, the order of an epoch: every token and sequence once, as recorded."""

import hashlib
import json
import math
import os
import pickle
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.arena.child import Child
from mlxhog.data import batches as module
from mlxhog.data import clients, validation_set
from mlxhog.data.batch import IGNORED, joined
from mlxhog.data.batches import Batches, Growth, Order
from mlxhog.data.clients import ClientBatches
from mlxhog.data.prepare import prepare
from mlxhog.data.records import Example
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import ExampleRows, TokenFile
from mlxhog.errors import DataError
from tests.data.token_files import token_file
from tests.pairs import each_of, max_examples
from tests.strategies.runs import begin_step, end_step, new_arena, strategy, worker


@max_examples(50)
@given(documents=st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_documents_come_back_from_the_file(tmp_path_factory, documents):
    file = token_file(tmp_path_factory.mktemp("tokens"), documents)
    starts = file.starts.astype(int).tolist()
    spans = [file.tokens[begin + 1 : end].astype(np.uint8) for begin, end in pairwise(starts)]
    assert [ids.tobytes() for ids in spans] == documents
    assert all(file.tokens[a] == file.bos for a in starts[:-1])
    assert file.header["bytes"] == sum(map(len, documents))


def read_in(lane, file):
    """The tokens of a file that a child was sent, and of the one with which it was spawned."""
    return file.tokens.tolist(), lane.store["file"].read(np.arange(1), 4, 4)[1].tolist()


@pytest.mark.slow
def test_who_is_spawned_with_a_file_reads_it_after_its_removal_and_others_open_its_path(tmp_path):
    file = token_file(tmp_path / "cache", [b"abcdefgh", Example(b"p", b"c")])
    part = validation_set.subset(file, 16)
    shutil.rmtree(tmp_path / "cache")
    with Child(store={"file": file}) as child:  # its spawn, and then its pipe
        assert child.call(60.0, read_in, file) == (file.tokens.tolist(), [[*b"abcd"]])
        assert child.call(60.0, read_in, part)[0] == part.tokens.tolist()
    with pytest.raises(DataError, match=r"text\.json is not the header of a token file"):
        pickle.loads(pickle.dumps(file))


def test_sequences_overlap_by_one_token_and_the_tail_is_left_out(tmp_path):
    file = token_file(tmp_path, [b"abcdefgh"])  # BOS and 8 letters
    assert file.n_sequences(4) == 2
    assert file.n_sequences(3) == 2
    batch = file.batch(np.array([1, 0]), 4)
    assert batch.x.tolist() == [list(b"defg"), [256, *b"abc"]]
    assert batch.y.tolist() == [list(b"efgh"), list(b"abcd")]
    assert batch.x.dtype == batch.y.dtype == np.int32
    assert batch.x.flags.c_contiguous
    assert batch.y.flags.c_contiguous
    assert batch.n_bytes == 8


def test_large_vocabularies_take_four_bytes_a_token(tmp_path):
    class Wide(ByteTokenizer):
        vocab_size = 65_600

    file = token_file(tmp_path, [b"abc"], Wide())
    assert file.path.stat().st_size == 16
    assert file.tokens.tolist() == [256, 97, 98, 99]


@each_of(
    ("suffix", "content", "message"),
    [
        (".bin", b"abc", r"text.bin cannot be read: 3 bytes, expected 11 items of 2"),
        (".bin", b"\xff" * 22, r"token 65535 is outside the vocabulary of 320"),
        (".bin", b"\0" * 20 + b"\xff\xff", r"token 65535 is outside the vocabulary of 320"),
        (".idx", b"\0" * 8, r"8 bytes, expected 2 items of 8"),
        (".len", b"", r"text.len cannot be read: 0 bytes"),
        *((".json", text, r"text.json is not the header of a token file of format 1")
          for text in (b"{", b"[]", b'{"format": 1}')),
        *((suffix, None, rf"text{suffix} (cannot be read|is not the header)")
          for suffix in (".bin", ".idx", ".json")),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, suffix, content, message):
    path = token_file(tmp_path, [b"abcdefghij"]).path
    if content is None:
        path.with_suffix(suffix).unlink()
    else:
        path.with_suffix(suffix).write_bytes(content)
    with pytest.raises(DataError, match=rf"{message}.*prepare the corpus again"):
        TokenFile.open(path)


def test_tokens_of_a_file_that_is_shortened_in_use_are_an_error_and_no_bus_error(tmp_path):
    file = token_file(tmp_path, [b"x" * 100_000])
    row = file.batch(np.array([1500]), 64)
    os.truncate(file.path, 5000)
    assert file.batch(np.array([2]), 64).x.shape == row.x.shape
    for read in (
        lambda: file.batch(np.array([1500]), 64),
        lambda: validation_set.subset(file, 90_000),
    ):
        with pytest.raises(DataError, match=r"text.bin: .* shortened to 5,000 bytes.*prepare the"):
            read()


@pytest.fixture
def file(tmp_path):
    text = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8).tobytes()
    return token_file(tmp_path, [text])


@each_of("limit", [module.TABLE_LIMIT, 10])  # of corpora, and of those above 65,536 sequences
@each_of("batch_size", [1, 7, 100, 1000])
def test_the_tickets_of_an_epoch_hold_every_sequence_once_in_order(file, batch_size, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TABLE_LIMIT", limit)
        source = Batches(file, seq_len=10, batch_size=batch_size, seed=3)
        order = Order(100, file.digest, 3)
        assert source.n_tickets == -(-100 // batch_size)
        for epoch in (0, 1, 0):
            rows = [row for t in range(source.n_tickets) for row in source.at(epoch, t).x.tolist()]
            assert rows == file.batch(order.at(epoch, 0, 100), 10).x.tolist()


def test_no_two_sequences_of_a_run_share_what_is_random_about_them(file):
    source = Batches(file, seq_len=10, batch_size=8, seed=0)
    batches = [source.at(epoch, ticket) for epoch in (0, 1) for ticket in range(13)]
    seeds = [batch.part(row, row + 1).seed for batch in batches for row in range(len(batch.x))]
    assert len(set(seeds)) == len(seeds) == 200
    other = Batches(file, seq_len=10, batch_size=8, seed=1)
    assert other.at(0, 0).seed not in seeds


@each_of("rows", [1, 3, 4])
def test_the_micro_batches_of_a_batch_have_all_of_its_bytes(file, rows):
    batch = replace(Batches(file, seq_len=10, batch_size=8, seed=0).at(0, 0), n_bytes=83)
    parts = [batch.part(begin, begin + rows) for begin in range(0, 8, rows)]
    assert sum(part.n_bytes for part in parts) == 83
    assert batch.part(0, 8).n_bytes == 83


ZEROS = "0" * 64


@each_of(
    ("n", "seed", "epoch", "expected"),
    [
        (10, 0, 0, [5, 1, 2, 6, 3, 0, 9, 7, 8, 4]),
        (10, 0, 1, [8, 7, 4, 6, 3, 2, 1, 5, 0, 9]),
        (1_000_003, 0, 0, [767920, 428890, 602688, 116877, 178414, 150880]),
        (1_000_003, 7, 2, [510957, 352135, 345588, 935015, 14665, 993767]),
    ],
)
def test_the_order_has_its_recorded_values(n, seed, epoch, expected):
    assert Order(n, ZEROS, seed).at(epoch, 0, len(expected)).tolist() == expected
    assert Order(n, "1" * 64, seed).at(epoch, 0, len(expected)).tolist() != expected


@each_of("n", [*range(1, 40), 65_536, 65_537, 131_072, 131_073, 1_000_003])
def test_every_epoch_holds_every_sequence_once_and_any_piece_is_that_of_the_whole(n):
    whole = Order(n, "ab" * 32, 3).at(1, 0, n)
    assert np.array_equal(np.sort(whole), np.arange(n))
    for start, count in ((0, 3), (n // 3, 500), (n - 1, 1)):
        piece = Order(n, "ab" * 32, 3).at(1, start, count)
        assert np.array_equal(piece, whole[start : start + count])


QUESTIONS = [(f"What is {k} plus one?", f"{k + 1}") for k in range(40)]
EXAMPLES = [Example(question.encode(), answer.encode()) for question, answer in QUESTIONS]


def lines(folder, pairs):
    path = folder / "train.jsonl"
    records = ({"prompt": prompt, "completion": completion} for prompt, completion in pairs)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def counted(batch, row=0):
    """The text of a row's counted labels, with | for the end."""
    ids = batch.y[row][batch.y[row] != IGNORED]
    return bytes(np.where(ids == 256, ord("|"), ids).astype(np.uint8))


@max_examples(200)
@given(
    documents=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), min_size=1, max_size=6),
    seq_len=st.integers(1, 9),
)
def test_rows_count_every_label_of_a_completion_once_and_none_of_a_prompt(documents, seq_len):
    starts = np.cumsum([0, *(1 + p + c for p, c in documents)]).astype(np.uint64)
    prompts = np.array([p for p, _ in documents], np.uint32)
    rows = ExampleRows.of(starts, prompts, np.zeros(len(prompts), np.bool_), seq_len)
    assert rows.length.min() >= 1
    assert rows.length.max() <= seq_len
    labels = [
        range(int(begin + context + 1), int(begin + n + 1))
        for begin, n, context in zip(rows.begin, rows.length, rows.context, strict=True)
    ]
    completions = [
        label
        for start, (p, c) in zip(starts[:-1].astype(int).tolist(), documents, strict=True)
        for label in range(start + 1 + p, start + p + c + 2)
    ]
    assert [label for row in labels for label in row] == completions
    assert rows.cut == sum(p > 0 for p, c in documents if 1 + p + c > seq_len)


def test_the_longest_is_of_the_examples_that_lose_a_beginning_and_not_of_plain_documents(tmp_path):
    examples = [Example(b"x" * n, b"\ny") for n in (3, 40, 60)]
    rows = token_file(tmp_path, [*examples, b"word " * 200]).rows(32)
    assert (rows.cut, rows.longest) == (2, 63)
    assert token_file(tmp_path / "plain", [examples[0], b"word " * 200]).rows(32).longest == 0


def test_the_same_tokens_with_another_prompt_are_another_text(tmp_path):
    texts = (Example(b"a ", b"bc"), Example(b"a b", b"\tc"), b"a bc")
    files = [token_file(tmp_path / str(k), [text]) for k, text in enumerate(texts)]
    assert files[0].tokens.tolist() == files[2].tokens.tolist()
    assert len({file.digest for file in files}) == 3
    assert files[2].prompts is None


def test_a_prepared_corpus_says_that_losses_are_of_completions_and_counts_their_bytes(tmp_path):
    path = str(lines(tmp_path, QUESTIONS))
    data = prepare(path)
    assert any("40 of 40 documents are examples" in note for note in data.notes)
    train, val = data.train, data.val
    assert train.n_sequences(32) + val.n_sequences(32) == len(QUESTIONS)
    batches = list(validation_set.batches(val, seq_len=32, batch_size=2))
    n_bytes = val.header["bytes"] - sum(val.prompts.tolist())
    assert sum(batch.n_bytes for batch in batches) == n_bytes
    assert sum(batch.n_labels for batch in batches) == n_bytes  # no separators
    with pytest.raises(DataError, match=r"40 examples of prompt and completion.*valid\.jsonl"):
        prepare(path, val="tail")  # which cuts each in two


def test_examples_too_few_to_hold_one_out_are_evaluated_themselves_and_a_note_says_so(tmp_path):
    path = lines(tmp_path, [("p", c) for c in "abc"])
    data = prepare(str(path))
    expected = [256, *b"p\na", 256, *b"p\nb", 256, *b"p\nc"]
    assert [file.tokens.tolist() for file in (data.train, data.val)] == [expected] * 2
    assert data.rule == "training examples"
    assert any("no example is held out of fewer than 6" in note for note in data.notes)


def test_every_example_is_in_one_batch_of_an_epoch_and_frozen_where_that_is_asked_for(tmp_path):
    file = token_file(tmp_path, EXAMPLES)
    how = {"seq_len": 32, "batch_size": 3, "seed": 0}
    for batches, frozen in (
        (Batches(file, **how, frozen=True), True),
        (Batches(file, **how), False),
        (ClientBatches(file, [range(0, 40, 2), range(1, 40, 2)], **how), False),
    ):
        epoch = [batches.at(0, ticket) for ticket in range(batches.n_tickets)]
        assert {batch.frozen for batch in epoch} == {frozen}
        answers = [counted(batch, k) for batch in epoch for k in range(len(batch.x))]
        assert sorted(answers) == sorted(f"{answer}|".encode() for _, answer in QUESTIONS)


def test_rows_of_unequal_batches_go_together_and_a_context_can_be_left_out(tmp_path):
    file = token_file(tmp_path, [Example(b"p" * 40, b"long enough"), Example(b"q", b"r")])
    wide, narrow = (file.batch(np.array([k]), 64) for k in (0, 1))
    assert narrow.x[0, :4].tolist() == [256, *b"q\nr"]
    assert (narrow.n_bytes, narrow.n_labels, narrow.n_tokens) == (1, 2, 4)
    both = joined([wide, narrow])
    assert (wide.x.shape[1], narrow.x.shape[1], both.x.shape) == (64, 32, (2, 64))
    assert both.n_tokens == wide.n_tokens + narrow.n_tokens
    rest, lengths = both.behind_context()
    assert lengths.tolist() == [41, 2]
    assert rest.x.shape == (2, 32)
    assert [counted(rest, k) for k in (0, 1)] == [b"long enough|", b"r|"]
    assert rest.x[0, 0] == ord("\n")  # from which the first label is predicted


LABELS = [f"class {k % 5}" for k in range(100)]
TOKENS = [10 + k % 7 for k in range(100)]


def divide(alpha, n=4, least=1):
    return clients.divide(LABELS, TOKENS, clients=n, alpha=alpha, seed=0, min_tokens=least)


def test_every_document_goes_to_exactly_one_client_as_recorded():
    divisions = [divide(alpha) for alpha in (0, 0.01, 0.1, 1.0, 100.0, math.inf)]
    for division in divisions:
        assert sorted(k for own in division.documents for k in own) == list(range(100))
        assert sum(division.tokens) == sum(TOKENS)
    lists = json.dumps([division.documents for division in divisions]).encode()
    assert hashlib.sha256(lists).hexdigest()[:16] == "93b777f3fba1a1b6"


def test_shares_are_drawn_again_until_every_client_has_enough():
    assert min(divide(0.3, least=100).tokens) >= 100
    with pytest.raises(DataError, match="use fewer --clients, or a larger --split-alpha"):
        divide(0.0, n=6)


@pytest.mark.slow
def test_addresses_are_divided_by_party_and_other_texts_in_ten_parts():
    assert len(clients.classes("sotu", "predefined", 214)) == 214
    assert len(set(clients.classes("sotu", "tail", 233))) == 8
    assert len(set(clients.classes("/texts", "tail", 20))) == 10


def test_a_clients_batches_are_its_own_text_each_sequence_once(tmp_path):
    file = token_file(tmp_path, [bytes([97 + k]) * (90 + 5 * k) for k in range(24)])
    documents = [tuple(range(k, 24, 3)) for k in range(3)]
    batches = ClientBatches(file, documents, seq_len=16, batch_size=4, seed=1)
    first = 0
    for client, own in enumerate(documents):
        spans = [file.tokens[int(file.starts[k]) : int(file.starts[k + 1])] for k in own]
        text = np.concatenate(spans).astype(np.int32)
        tickets = range(first, first := first + batches.tickets[client])
        rows = [
            (*x.tolist(), int(y[-1]))
            for batch in (batches.at(1, ticket) for ticket in tickets)
            for x, y in zip(batch.x, batch.y, strict=True)
        ]
        expected = [tuple(text[at : at + 17].tolist()) for at in range(0, len(text) - 16, 16)]
        assert sorted(rows) == sorted(expected)
        assert rows != expected
    assert first == batches.n_tickets


def test_workers_train_their_clients_in_turn_and_go_on_when_there_are_others():
    tickets = (8,) * 5
    two, three = (replace(strategy("avg_runs", n), client_tickets=tickets) for n in (2, 3))
    with new_arena(two, n_tickets=40) as arena:
        workers, claims = [worker(arena, slot, two) for slot in (1, 2)], []
        for one in workers * 4:
            lease = begin_step(one)
            (part,) = lease.parts
            claims.append(divmod(part.ticket, 8))
            end_step(one, lease)
        state = two.state(arena)
    assert claims[::2] == [(0, 0), (2, 0), (4, 0), (0, 1)]
    assert claims[1::2] == [(1, 0), (3, 0), (1, 1), (3, 1)]
    assert state["clients"] == [2, 2, 1, 2, 1]
    with new_arena(three, n_tickets=40) as arena:
        three.restore_state(arena, state)
        leases = [worker(arena, slot, three).claim() for slot in (1, 2, 3)]
        assert [lease.parts[0].ticket for lease in leases] == [0 + 2, 8 + 2, 16 + 1]


def test_a_file_that_grows_keeps_the_order_of_its_epoch_and_the_new_rows_follow(tmp_path):
    texts = [b"%d " % k * 20 for k in range(40)]
    old, new = token_file(tmp_path / "old", texts[:25]), token_file(tmp_path / "new", texts)
    assert new.digest_of(25) == old.digest != new.digest_of(24)
    assert new.digest_of(41) == ""
    rows = {"seq_len": 8, "batch_size": 4, "seed": 3}
    n = old.n_sequences(8)
    before = Batches(old, **rows)
    after = Batches(new, **rows, grown=(Growth(2, n, old.digest),))
    for ticket in range(n // 4):
        assert np.array_equal(before.at(2, ticket).x, after.at(2, ticket).x)
    for epoch in (2, 3):  # and each row is in an epoch once
        every = np.concatenate([after.at(epoch, t).x for t in range(after.n_tickets)])
        assert len(every) == new.n_sequences(8)
        rest = Batches(new, **rows)
        whole = np.concatenate([rest.at(3, t).x for t in range(rest.n_tickets)])
        assert sorted(every.tolist()) == sorted(whole.tolist())
    assert not np.array_equal(before.at(3, 0).x, after.at(3, 0).x)
