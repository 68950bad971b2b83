"""Generation: the state is carried, text comes in whole characters, bad prompts are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.generate import answer
from mlxhog.decoding.options import Sampling
from mlxhog.decoding.text import TextStream
from tests.decoding.readers import Countdown, MarkovModel, Reader
from tests.pairs import max_examples

BYTES = ByteTokenizer()


def run(model, prompt, n=20, *, stop=False, seed=0):
    """The tokens after a prompt."""
    sampling = Sampling(max_new_tokens=n, seed=seed)
    pieces = answer(model, [prompt], tokenizer=BYTES, sampling=sampling, stop_at_document_end=stop)
    return [piece.token for piece in pieces if piece.token is not None]


def greedy(model, prompts, n=20, *stop, **how):
    sampling = Sampling(max_new_tokens=n, temperature=0.0, stop=stop)
    return list(answer(model, prompts, tokenizer=BYTES, sampling=sampling, **how))


def of_row(said, row):
    """Tokens, text and finish reason of one answer."""
    mine = [one for one in said if one.row == row]
    assert all(one.finish_reason is None for one in mine[:-1])
    return (
        [one.token for one in mine if one.token is not None],
        "".join(one.text for one in mine),
        mine[-1].finish_reason,
    )


def test_the_model_reads_bos_the_prompt_and_every_token_but_the_last():
    model = MarkovModel()
    text = run(model, [84, 104], n=4)
    assert model.read == ((256, 84, 104, *text[:-1]),)
    assert model.calls == [(1, 3), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(True, ([104], "h", "document_end")), (False, ([104, 256, 105], "hi", "length"))],
)
def test_a_drawn_bos_ends_the_document(stop, expected):
    text = greedy(Countdown([104, 256, 105]), [[0]], n=3, stop_at_document_end=stop)
    assert of_row(text, 0) == expected


def test_a_stop_string_ends_the_answer_and_is_not_said():
    said = greedy(Countdown(b"one two three"), [[0]], 13, "wo t", "zzz")
    tokens, text, reason = of_row(said, 0)
    assert (bytes(t for t in tokens if t is not None), text, reason) == (
        b"one two t",
        "one t",
        "stop",
    )


def test_random_answers_of_a_batch_depend_on_their_row_alone():
    def answers(batch_size):
        text = list(
            answer(
                MarkovModel(),
                [[84], [84], [84]],
                tokenizer=BYTES,
                sampling=Sampling(max_new_tokens=12, seed=3),
                batch_size=batch_size,
            )
        )
        return [of_row(text, row)[0] for row in range(3)]

    first, second, third = answers(3)
    assert first != second != third
    assert answers(1) == [first, second, third]
    assert run(MarkovModel(), [84], n=12, stop=True, seed=3) == first


def test_a_repetition_penalty_counts_prompt_and_answer():
    class Stubborn(Reader):
        def says(self, history):
            logits = np.zeros(320, np.float32)
            logits[[65, 66, 67, 68]] = [9.0, 8.0, 7.0, 1.0]
            return logits

    sampling = Sampling(max_new_tokens=4, temperature=0.0, repetition_penalty=2.0)
    text = answer(Stubborn(), [[66]], tokenizer=BYTES, sampling=sampling)
    assert [one.token for one in text] == [65, 67, 65, 65]


# -- text ------------------------------------------------------------------------------------------


def read(text, *stop, tokenizer=BYTES):
    """The pieces of a text, and whether a stop string ended it."""
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text).tolist():
        pieces.append(stream.read(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.end()], stream.stopped


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none():
    assert read(b"aSTOx", "STOP") == (["a", "", "", "", "STOx", ""], False)
    assert read(b"aSTO", "STOP") == (["a", "", "", "", "STO"], False)
    assert read(b"aSTOPb", "STOP") == (["a", "", "", "", ""], True)


@max_examples(200)
@given(
    text=st.text("ab’", max_size=12),
    stop=st.lists(st.text("ab’", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_at_the_first_stop_string_that_is_whole(text, stop):
    pieces, stopped = read(text.encode(), *stop)
    ends = [text.index(one) + len(one) for one in stop if one in text]
    assert stopped == bool(ends)
    visible = text[: min(ends)] if ends else text
    begins = [visible.index(one) for one in stop if one in visible]
    assert "".join(pieces) == (visible[: min(begins)] if begins else text)
