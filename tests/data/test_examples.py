"""Examples of prompt and completion: completions alone are labels, whatever is cut."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data import heldout, textfiles
from mlxhog.data.batch import IGNORED, joined
from mlxhog.data.batches import Batches
from mlxhog.data.clients import ClientBatches
from mlxhog.data.examples import Example, ExampleRows
from mlxhog.data.prepare import prepare
from mlxhog.errors import DataError
from tests.data.token_files import token_file
from tests.pairs import each_of, max_examples

QUESTIONS = [(f"What is {k} plus one?", f"{k + 1}") for k in range(40)]


def lines(folder, pairs):
    path = folder / "train.jsonl"
    records = ({"prompt": prompt, "completion": completion} for prompt, completion in pairs)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def counted(batch, row=0):
    """The text of a row's counted labels, with | for the end."""
    ids = batch.y[row][batch.y[row] != IGNORED]
    return bytes(np.where(ids == 256, ord("|"), ids).astype(np.uint8))


@each_of(
    ("prompt", "completion", "text", "n"),
    [
        ("2+2=", "4", b"2+2=\n4", 5),
        ("The sky is", " blue", b"The sky is blue", 10),
        ("Q: why?\nA: ", "so", b"Q: why?\nA: so", 11),
        ("", "so", b"so", 0),
    ],
)
def test_a_line_break_belongs_to_the_prompt_where_neither_part_brings_white_space(
    tmp_path, prompt, completion, text, n
):
    (example,) = textfiles.documents(lines(tmp_path, [(prompt, completion)]), None)
    assert (example, example.lengths[0]) == (text, n)


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


def test_the_same_tokens_with_another_prompt_are_another_text(tmp_path):
    files = []
    for k, example in enumerate((Example(b"a ", b"bc"), Example(b"a b", b"\tc"), b"a bc")):
        folder = tmp_path / str(k)
        folder.mkdir()
        files.append(token_file(folder, [example]))
    assert files[0].tokens.tolist() == files[2].tokens.tolist()
    assert len({file.digest for file in files}) == 3
    assert files[2].prompts is None


def test_a_prepared_corpus_says_that_losses_are_of_completions_and_counts_their_bytes(tmp_path):
    path = str(lines(tmp_path, QUESTIONS))
    data = prepare(path, cache_dir=tmp_path / "cache")
    assert any("40 of 40 documents are examples" in note for note in data.notes)
    train, val = data.open(32)
    assert train.n_sequences(32) + val.n_sequences(32) == len(QUESTIONS)
    batches = list(heldout.batches(val, seq_len=32, batch_size=2))
    held_out = [completion for k, (_, completion) in enumerate(QUESTIONS) if k % 12 == 5]
    assert sum(batch.n_bytes for batch in batches) == len("".join(held_out))
    assert sum(batch.n_labels for batch in batches) == len("".join(held_out))  # no separators
    with pytest.raises(DataError, match=r"40 examples of prompt and completion.*valid\.jsonl"):
        prepare(path, cache_dir=tmp_path / "cache", val="tail")  # which cuts each in two


def test_examples_too_few_to_hold_one_out_are_evaluated_themselves_and_a_note_says_so(tmp_path):
    path = lines(tmp_path, [("p", c) for c in "abc"])
    data = prepare(str(path), cache_dir=tmp_path / "cache")
    expected = [256, *b"p\na", 256, *b"p\nb", 256, *b"p\nc"]
    assert [file.tokens.tolist() for file in data.open(8)] == [expected] * 2
    assert data.rule == "training examples"
    assert any("no example is held out of fewer than 6" in note for note in data.notes)


def test_every_example_is_in_one_batch_of_an_epoch_and_frozen_where_that_is_asked_for(tmp_path):
    file = token_file(tmp_path, [Example(p.encode(), c.encode()) for p, c in QUESTIONS])
    how = {"seq_len": 32, "batch_size": 3, "seed": 0}
    clients = [range(0, 40, 2), range(1, 40, 2)]
    for batches, frozen in (
        (Batches(file, **how, frozen=True), True),
        (Batches(file, **how), False),
        (ClientBatches(file, clients, **how), False),
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
