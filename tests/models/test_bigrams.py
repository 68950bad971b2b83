"""Embedding and head that begin with counted pairs of words."""

import numpy as np
import pytest

from mlxhog.models import bigrams

WORDS, WIDTH = 40, 24


def text(n, seed=0, words=WORDS):
    """Ids (n,) uint16, of which each is the one before plus 0, 1 or 2, with shares 1, 2 and 3."""
    steps = np.random.default_rng(seed).choice(3, n, p=[1 / 6, 2 / 6, 3 / 6])
    return (np.cumsum(steps) % words).astype(np.uint16)


def logits(embedding, head):
    """The logits of a model whose blocks add nothing, after each word, (V, V)."""
    rms = np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    return embedding / rms @ head.T


def loss(tokens, scores):
    """Mean cross entropy of the next word."""
    log_z = np.log(np.exp(scores).sum(axis=1))
    return float((log_z[tokens[:-1]] - scores[tokens[:-1], tokens[1:]]).mean())


def test_the_model_begins_nearer_to_the_pairs_than_to_the_words_of_other_text():
    embedding, head = bigrams.embedding_and_head(text(20_000), WORDS, WIDTH)
    assert (embedding.dtype, head.dtype) == (np.float32, np.float32)
    assert embedding.shape == head.shape == (WORDS, WIDTH)
    other = text(20_000, seed=1)
    of_words = np.log(np.bincount(other) / len(other))
    alone = loss(other, np.tile(of_words, (WORDS, 1)))
    assert loss(other, logits(embedding, head)) < 0.5 * alone


def test_a_word_that_never_occurs_has_finite_rows_and_is_unlikely():
    embedding, head = bigrams.embedding_and_head(text(2000), WORDS + 24, WIDTH)
    assert np.isfinite(embedding).all()
    assert np.isfinite(head).all()
    scores = logits(embedding, head)
    assert (scores[:WORDS, WORDS:].max(axis=1) < scores[:WORDS].max(axis=1)).all()


@pytest.mark.parametrize("width", [1, 2, WORDS, 3 * WORDS])
def test_any_width_has_rows_of_length_sqrt_2_or_of_the_constant_alone(width):
    embedding, head = bigrams.embedding_and_head(text(500), WORDS, width)
    assert embedding.shape == head.shape == (WORDS, width)
    length = 1.0 if width == 1 else np.sqrt(2)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), length, rtol=1e-5)


def test_the_same_text_gives_the_same_rows_and_a_long_one_is_sampled(monkeypatch):
    tokens = text(50_000)
    first, again = (bigrams.embedding_and_head(tokens, WORDS, WIDTH) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    monkeypatch.setattr(bigrams, "MAX_TOKENS", 20_000)
    sampled = bigrams.embedding_and_head(tokens, WORDS, WIDTH)
    assert not np.array_equal(first, sampled)
    assert loss(tokens, logits(*sampled)) == pytest.approx(loss(tokens, logits(*first)), rel=0.1)
