"""Answers: the state is carried, requests come and go, prompts are read in turns, text is whole."""

from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.engine import DecodingEngine, GenerationRequest, answer
from mlxhog.decoding.options import Sampling
from mlxhog.decoding.text import TextStream
from mlxhog.errors import DataError, Diverged
from tests.pairs import each_of, max_examples

BYTES = ByteTokenizer()
ON = {"stop_ids": ()}


class HistoryModel:
    """A model whose state is the tokens that each row has read."""

    def __init__(self):
        self.calls = []
        self.read = ()

    def logits(self, tokens, state):
        assert tokens.dtype == np.int32
        self.calls.append(tokens.shape)
        before = ((),) * len(tokens) if state is None else state
        assert len(before) == len(tokens)
        self.read = tuple((*old, *new) for old, new in zip(before, tokens.tolist(), strict=True))
        return np.stack([self.says(history) for history in self.read]), self.read

    def all_logits(self, tokens, state):
        parts = []
        for k in range(tokens.shape[1]):
            logits, state = self.logits(tokens[:, k : k + 1], state)
            parts.append(logits)
        assert state is not None
        return np.stack(parts, axis=1), state

    def stack_states(self, states):
        return tuple(history for state in states for history in state)

    def select_state(self, state, rows):
        return tuple(state[row] for row in rows)

    def says(self, history):
        raise NotImplementedError


class MarkovModel(HistoryModel):
    """Logits that depend on the last two tokens."""

    def __init__(self, vocab_size=320, seed=0):
        super().__init__()
        random = np.random.default_rng(seed)
        self.first = random.standard_normal((vocab_size, vocab_size)).astype(np.float32)
        self.second = random.standard_normal((vocab_size, vocab_size)).astype(np.float32)

    def says(self, history):
        before = history[-2] if len(history) > 1 else 0
        return 3 * (self.first[history[-1]] + self.second[before])


class Countdown(HistoryModel):
    """Says fixed texts after prompts of one token: the text is chosen by that token."""

    def __init__(self, *texts):
        super().__init__()
        self.texts = texts

    def says(self, history):
        _, prompt, *said = history
        logits = np.zeros(320, np.float32)
        logits[319] = 50.0  # a padding row, the most likely of all
        logits[self.texts[prompt][len(said)]] = 40.0
        return logits


def engine(model=None, **how):
    return DecodingEngine(model or MarkovModel(), BYTES, **how)


def asked(prompt, n=8, **numbers):
    return GenerationRequest(prompt=prompt, sampling=Sampling(max_new_tokens=n, **numbers))


def rest(engine):
    pieces = []
    while engine.is_busy:
        pieces += engine.step()
    return pieces


def tokens(pieces, row=0):
    return [piece.token for piece in pieces if piece.row == row]


def answers(model, prompts, n=8, *, how=None, **numbers):
    sampling = Sampling(max_new_tokens=n, **numbers)
    return list(answer(model, prompts, tokenizer=BYTES, sampling=sampling, **(how or {})))


def alone(prompt, n=8, seed=0):
    return tokens(answers(MarkovModel(), [prompt], n, seed=seed))


def said(pieces):
    assert all(one.finish_reason is None for one in pieces[:-1])
    ids = [one.token for one in pieces if one.token is not None]
    return ids, "".join(one.text for one in pieces), pieces[-1].finish_reason


def test_the_model_reads_bos_the_prompt_and_every_token_but_the_last():
    model = MarkovModel()
    text = tokens(answers(model, [[84, 104]], 4, how=ON))
    assert model.read == ((256, 84, 104, *text[:-1]),)
    assert model.calls == [(1, 3), (1, 1), (1, 1), (1, 1)]


@each_of(
    ("text", "n", "stop", "how", "expected"),
    [
        ([104, 256, 105], 3, (), {}, ([104], "h", "document_end")),
        ([104, 256, 105], 3, (), ON, ([104, 256, 105], "hi", "length")),
        (b"one two three", 13, ("wo t", "zzz"), {}, ([*b"one two t"], "one t", "stop")),
    ],
)
def test_an_answer_ends_at_a_drawn_bos_a_stop_string_or_its_length(text, n, stop, how, expected):
    assert said(answers(Countdown(text), [[0]], n, how=how, temperature=0, stop=stop)) == expected


def test_random_answers_of_a_batch_depend_on_their_row_alone():
    def of(batch_size, rows=3):
        how = {"batch_size": batch_size}
        pieces = answers(MarkovModel(), [[84]] * rows, 12, seed=3, how=how)
        return [tokens(pieces, row) for row in range(rows)]

    first, second, third = of(3)
    assert first != second != third
    assert of(1) == [first, second, third]
    assert of(1, rows=1) == [first]


def test_a_repetition_penalty_counts_prompt_and_answer():
    logits = np.zeros(320, np.float32)
    logits[[65, 66, 67, 68]] = [9.0, 8.0, 7.0, 1.0]
    stubborn = HistoryModel()
    stubborn.says = lambda history: logits
    pieces = answers(stubborn, [[66]], 4, temperature=0.0, repetition_penalty=2.0)
    assert tokens(pieces) == [65, 67, 65, 65]


def test_a_request_is_admitted_between_tokens_and_no_answer_depends_on_another():
    e = engine()
    first = e.submit(asked([84], n=12, seed=1))
    pieces = e.step() + e.step()
    assert len(tokens(pieces, first)) == 3  # of the prompt, and one of each step
    second = e.submit(asked([65, 66], n=5, seed=2))
    pieces += e.step()
    assert len(tokens(pieces, second)) == 2
    pieces += rest(e)
    assert tokens(pieces, first) == alone([84], 12, 1)
    assert tokens(pieces, second) == alone([65, 66], 5, 2)


def test_a_long_prompt_holds_nobody_up_for_longer_than_two_pieces():
    model = MarkovModel()
    e = engine(model, prefill_chunk=10)
    streaming = e.submit(asked([84], n=30))
    e.step()
    long, short = e.submit(asked([7] * 95)), e.submit(asked([8] * 5))
    pieces = []
    while not tokens(pieces, long):
        before = len(model.calls)
        step = e.step()
        pieces += step
        assert len(tokens(step, streaming)) == 1
        assert sum(width for rows, width in model.calls[before:] if width > 1) < 20
    assert len(tokens(pieces, short)) > 5  # it did not wait for the long one
    assert tokens(pieces + rest(e), long) == alone([7] * 95)


@each_of("others", [(), (3, 9), (8,)])
def test_where_a_prompt_is_cut_does_not_depend_on_its_neighbours(others):
    class Spy(MarkovModel):
        cuts = ()

        def logits(self, tokens, state):
            if tokens.shape[1] > 1 and 2 in tokens:
                self.cuts += (tokens.shape[1],)
            return super().logits(tokens, state)

    e = engine(model := Spy(), prefill_chunk=8)
    for prompt in (*([1] * length for length in others), [2] * 20):
        e.submit(asked(prompt))
    rest(e)
    assert model.cuts == (8, 8, 5)


@each_of("steps", [0, 1, 4])
def test_a_cancelled_answer_stops_wherever_it_is_and_the_others_go_on(steps):
    e = engine(batch_size=2, prefill_chunk=4)
    rows = [e.submit(asked([84 + k] * (k + 2), n=9, seed=k)) for k in range(4)]
    pieces = [piece for _ in range(steps) for piece in e.step()]
    for row in (1, 3, 1, 3):
        e.cancel(rows[row])
    after = rest(e)
    assert not {piece.row for piece in after} & {1, 3}
    assert tokens(pieces + after, 0) == alone([84] * 2, 9, 0)
    assert tokens(pieces + after, 2) == alone([86] * 4, 9, 2)


def test_after_a_wrong_prompt_or_logits_that_are_not_finite_the_engine_goes_on():
    e = engine(model := MarkovModel())
    with pytest.raises(DataError, match="token 300 at position 1 is outside"):
        e.submit(asked([1, 300]))
    assert not e.is_busy
    e.submit(asked([1]))
    good, model.first = model.first, np.full_like(model.first, np.nan)
    with pytest.raises(Diverged):
        e.step()
    e.clear()
    model.first = good
    row = e.submit(asked([84], seed=4))
    assert tokens(rest(e), row) == alone([84], seed=4)


@each_of(("chunk", "generates"), [(2, True), (100, True), (100, False)])
def test_scores_are_the_models_probabilities_of_prompt_and_answer(chunk, generates):
    e, prompt = engine(prefill_chunk=chunk), [84, 65, 66]
    sampling = Sampling(max_new_tokens=2, temperature=5.0, top_k=3)
    how = {"top": 2, "scores_prompt": True, "generates": generates}
    e.submit(GenerationRequest(prompt=prompt, sampling=sampling, **how))
    pieces = rest(e)
    scores = [score for piece in pieces for score in piece.scores]
    text = [*prompt, *said(pieces)[0]]
    assert [score.token for score in scores] == text
    if not generates:
        assert (text, pieces[-1].finish_reason) == (prompt, "length")
    for k, score in enumerate(scores):
        logits = MarkovModel().says((BYTES.bos, *text[:k]))[: BYTES.n_ids].astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum()
        assert np.exp(score.logprob) == pytest.approx(expected[text[k]], rel=1e-4)
        assert list(score.top) == np.argsort(-expected)[:2].tolist()


def test_an_answer_does_not_keep_the_logits_of_its_prompt():
    model, kept = MarkovModel(), []
    all_logits = model.all_logits

    def watched(tokens, state):
        logits, state = all_logits(tokens, state)
        kept.append(ref(logits))
        return logits, state

    model.all_logits = watched
    e = engine(model)
    e.submit(replace(asked([84, 65, 66]), scores_prompt=True, top=1))
    e.step()
    assert e.is_busy
    assert [one() for one in kept] == [None]


def read(text, *stop):
    stream, pieces = TextStream(BYTES, stop), []
    for token in BYTES.encode(text).tolist():
        pieces.append(stream.read(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.end()], stream.stopped


@max_examples(200)
@given(
    text=st.text("ab’", max_size=12),
    stop=st.lists(st.text("ab’", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_at_the_first_stop_string_that_is_whole(text, stop):
    assert read(b"aSTOx", "STOP") == (["a", "", "", "", "STOx", ""], False)  # held back
    assert read(b"aSTOPb", "STOP") == (["a", "", "", "", ""], True)
    pieces, stopped = read(text.encode(), *stop)
    ends = [text.index(one) + len(one) for one in stop if one in text]
    assert stopped == bool(ends)
    visible = text[: min(ends)] if ends else text
    begins = [visible.index(one) for one in stop if one in visible]
    assert "".join(pieces) == (visible[: min(begins)] if begins else text)
