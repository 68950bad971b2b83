"""The engine: requests come and go between tokens, prompts are read in turns."""

import numpy as np
import pytest

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.engine import Engine, Request
from mlxhog.decoding.generate import answer
from mlxhog.decoding.options import Sampling
from mlxhog.errors import DataError, Diverged
from tests.decoding.readers import MarkovModel

BYTES = ByteTokenizer()


def engine(model=None, **how):
    return Engine(model or MarkovModel(), BYTES, **how)


def asked(prompt, n=8, **numbers):
    return Request(prompt=prompt, sampling=Sampling(max_new_tokens=n, **numbers))


def rest(engine):
    """Everything until nobody is left."""
    pieces = []
    while engine.is_busy:
        pieces += engine.step()
    return pieces


def tokens(pieces, row):
    return [piece.token for piece in pieces if piece.row == row]


def alone(prompt, n=8, seed=0):
    sampling = Sampling(max_new_tokens=n, seed=seed)
    text = answer(MarkovModel(), [prompt], tokenizer=BYTES, sampling=sampling)
    return [piece.token for piece in text]


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
    long = e.submit(asked([7] * 95))
    short = e.submit(asked([8] * 5))
    pieces = []
    while not tokens(pieces, long):
        before = len(model.calls)
        step = e.step()
        pieces += step
        assert len(tokens(step, streaming)) == 1
        assert sum(width for rows, width in model.calls[before:] if width > 1) < 20
    assert len(tokens(pieces, short)) > 5  # it did not wait for the long one
    assert tokens(pieces + rest(e), long) == alone([7] * 95)


def test_where_a_prompt_is_cut_does_not_depend_on_its_neighbours():
    def cuts(*others):
        model = Spy()
        e = engine(model, prefill_chunk=8)
        for length in others:
            e.submit(asked([1] * length))
        e.submit(asked([2] * 20))
        rest(e)
        return model.cuts

    class Spy(MarkovModel):
        def __init__(self):
            super().__init__()
            self.cuts = []

        def logits(self, tokens, state):
            if tokens.shape[1] > 1 and 2 in tokens:
                self.cuts.append(tokens.shape[1])
            return super().logits(tokens, state)

    assert cuts() == cuts(3, 9) == cuts(8) == [8, 8, 5]


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_cancelled_answer_stops_wherever_it_is_and_the_others_go_on(steps):
    e = engine(batch_size=2, prefill_chunk=4)
    rows = [e.submit(asked([84 + k] * (k + 2), n=9, seed=k)) for k in range(4)]
    pieces = [piece for _ in range(steps) for piece in e.step()]
    for row in (1, 3):
        e.cancel(rows[row])
        e.cancel(rows[row])
    after = rest(e)
    assert not {piece.row for piece in after} & {1, 3}
    assert tokens(pieces + after, 0) == alone([84] * 2, 9, 0)
    assert tokens(pieces + after, 2) == alone([86] * 4, 9, 2)


def test_a_prompt_outside_the_vocabulary_is_refused_and_changes_nothing():
    e = engine()
    with pytest.raises(DataError, match="token 300 at position 1 is outside"):
        e.submit(asked([1, 300]))
    assert not e.is_busy


def test_after_logits_that_are_not_finite_the_engine_can_be_cleared():
    model = MarkovModel()
    e = engine(model)
    e.submit(asked([1]))
    good = model.first
    model.first = np.full_like(good, np.nan)
    with pytest.raises(Diverged):
        e.step()
    e.clear()
    model.first = good
    row = e.submit(asked([84], seed=4))
    assert tokens(rest(e), row) == alone([84], seed=4)


def probabilities(before):
    logits = MarkovModel().says(tuple(before))[: BYTES.n_ids].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("chunk", [2, 100])
def test_scores_are_the_model_s_probabilities_of_prompt_and_answer(chunk):
    e = engine(prefill_chunk=chunk)
    sampling = Sampling(max_new_tokens=2, temperature=5.0, top_k=3)
    e.submit(Request(prompt=[84, 65, 66], sampling=sampling, top=2, scores_prompt=True))
    pieces = rest(e)
    scores = [score for piece in pieces for score in piece.scores]
    text = [84, 65, 66, *[piece.token for piece in pieces if piece.token is not None]]
    assert [score.token for score in scores] == text
    for k, score in enumerate(scores):
        expected = probabilities([BYTES.bos, *text[:k]])
        assert score.logprob is not None
        assert np.exp(score.logprob) == pytest.approx(expected[text[k]], rel=1e-4)
        assert list(score.top) == np.argsort(-expected)[:2].tolist()


def test_a_request_without_an_answer_reads_its_prompt_only():
    e = engine()
    sampling = Sampling(max_new_tokens=1)
    e.submit(Request(prompt=[65, 66], sampling=sampling, top=1, scores_prompt=True, writes=False))
    (piece,) = rest(e)
    assert (piece.token, piece.text, piece.finish_reason) == (None, "", "length")
    assert [score.token for score in piece.scores] == [65, 66]
