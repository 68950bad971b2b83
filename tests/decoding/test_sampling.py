"""Sampling follows its settings and repeats itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mlxhog.decoding.options import Sampling
from mlxhog.decoding.sampling import Sampler
from mlxhog.errors import Diverged
from tests.pairs import each_of, max_examples


def logits_of(*probabilities):
    with np.errstate(divide="ignore"):
        return np.log(np.array([probabilities], np.float32))


def drawing(row=0, **numbers):
    return Sampler(Sampling(**{"temperature": 1.0} | numbers), row)


def frequencies(sampler, logits, n=10_000):
    counts = np.bincount(sampler(np.repeat(logits, n, axis=0)), minlength=logits.shape[1])
    return [float(c) / n for c in counts]


@max_examples(60)
@given(
    logits=hnp.arrays(np.float32, (1, 12), elements=st.floats(-8, 8, width=32), unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(1, 12),
    top_p=st.sampled_from([0.1, 0.35, 0.77, 0.93]),
    min_p=st.sampled_from([0.01, 0.13, 0.5]),
)
def test_the_possible_tokens_are_those_of_transformers(logits, temperature, top_k, top_p, min_p):
    warpers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(top_k),
            TopPLogitsWarper(top_p),
            MinPLogitsWarper(min_p),
        ]
    )
    theirs = warpers(torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits.copy()))
    possible = set(torch.isfinite(theirs[0]).nonzero().flatten().tolist())
    ours = drawing(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert set(ours(np.repeat(logits, 300, axis=0)).tolist()) <= possible


def distribution(sampler, logits, n):
    tokens, counts = np.unique(sampler(np.repeat(logits, n, axis=0)), return_counts=True)
    return dict(zip(tokens.tolist(), (counts / n).tolist(), strict=True))


def test_tokens_whose_probabilities_round_to_one_number_are_told_apart_by_their_logits():
    logits = np.array([[0.0, 1e-38, 1.0, -9.0]], np.float32)
    assert set(distribution(drawing(top_p=0.75), logits, 2000)) == {1, 2}


def test_of_equal_tokens_top_k_keeps_the_first():
    logits = np.zeros((1, 50), np.float32)
    logits[0, 40] = 1.0
    assert set(distribution(drawing(top_k=3), logits, 2000)) == {0, 1, 40}


@each_of("penalty", [0.5, 1.0, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    random = np.random.default_rng(0)
    logits = random.standard_normal((20, 50)).astype(np.float32)
    read = random.integers(0, 50, (20, 15))
    occurred = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(occurred, read, values=True, axis=1)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.from_numpy(read), torch.from_numpy(logits.copy())
    )
    before = logits.copy()
    actual = drawing(temperature=0.0, repetition_penalty=penalty)(logits, occurred)
    np.testing.assert_array_equal(actual, theirs.argmax(-1).numpy())
    np.testing.assert_array_equal(logits, before)


@each_of("temperature", [0.01, 1e-40, 1e-50])
@each_of("how", [{}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.1}])
def test_large_logits_and_tiny_temperatures_do_not_overflow(temperature, how):
    logits = np.array([[1e30, -1e30, 0.0]], np.float32)
    sampler = drawing(temperature=temperature, **how)
    assert sampler(logits).tolist() == [0]


@each_of("temperature", [0.0, 1.0])
@each_of("bad", [[np.nan, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_logits_that_are_not_finite_are_refused(temperature, bad):
    with pytest.raises(Diverged, match="logits are not finite"):
        drawing(temperature=temperature)(np.array([[0.0, 1.0], bad], np.float32))


def test_temperature_one_draws_from_the_models_distribution():
    assert frequencies(drawing(), logits_of(0.5, 0.3, 0.2, 0.0)) == pytest.approx(
        [0.5, 0.3, 0.2, 0.0], abs=0.015
    )
