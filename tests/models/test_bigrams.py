"""Bigram initialization of embedding and head."""

import numpy as np
import pytest

from mlxhog.models import bigrams

TOKENS, WIDTH = 40, 24


def text(n, seed=0, vocab_size=TOKENS):
    """Ids (n,) uint16, of which each is the one before plus 0, 1 or 2, with shares 1, 2 and 3."""
    steps = np.random.default_rng(seed).choice(3, n, p=[1 / 6, 2 / 6, 3 / 6])
    return (np.cumsum(steps) % vocab_size).astype(np.uint16)


def logits(embedding, head):
    """The logits of a model whose blocks add nothing, after each token, (V, V)."""
    rms = np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    return embedding / rms @ head.T


def loss(tokens, scores):
    log_z = np.log(np.exp(scores).sum(axis=1))
    return float((log_z[tokens[:-1]] - scores[tokens[:-1], tokens[1:]]).mean())


def test_the_initial_model_predicts_other_text_better_than_unigrams():
    embedding, head = bigrams.embedding_and_head(text(20_000), TOKENS, WIDTH)
    assert (embedding.dtype, head.dtype) == (np.float32, np.float32)
    assert embedding.shape == head.shape == (TOKENS, WIDTH)
    other = text(20_000, seed=1)
    unigrams = np.log(np.bincount(other) / len(other))
    alone = loss(other, np.tile(unigrams, (TOKENS, 1)))
    assert loss(other, logits(embedding, head)) < 0.5 * alone


def test_a_token_that_never_occurs_has_finite_rows_and_is_unlikely():
    embedding, head = bigrams.embedding_and_head(text(2000), TOKENS + 24, WIDTH)
    assert np.isfinite(embedding).all()
    assert np.isfinite(head).all()
    scores = logits(embedding, head)
    assert (scores[:TOKENS, TOKENS:].max(axis=1) < scores[:TOKENS].max(axis=1)).all()


@pytest.mark.parametrize("width", [1, 2, TOKENS, 3 * TOKENS])
def test_rows_have_length_sqrt_2_at_any_width_or_1_for_the_constant_alone(width):
    embedding, head = bigrams.embedding_and_head(text(500), TOKENS, width)
    assert embedding.shape == head.shape == (TOKENS, width)
    length = 1.0 if width == 1 else np.sqrt(2)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), length, rtol=1e-5)


def test_the_same_text_gives_the_same_rows_and_a_long_one_is_sampled(monkeypatch):
    tokens = text(50_000)
    first, again = (bigrams.embedding_and_head(tokens, TOKENS, WIDTH) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    monkeypatch.setattr(bigrams, "MAX_TOKENS", 20_000)
    sampled = bigrams.embedding_and_head(tokens, TOKENS, WIDTH)
    assert not np.array_equal(first, sampled)
    assert loss(tokens, logits(*sampled)) == pytest.approx(loss(tokens, logits(*first)), rel=0.1)
