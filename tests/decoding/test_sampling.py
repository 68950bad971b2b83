"""Sampling follows its settings and repeats itself."""

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlxhog.decoding.options import Sampling
from mlxhog.decoding.sampling import TokenSampler
from mlxhog.errors import Diverged
from tests.pairs import each_of, max_examples


def drawing(**numbers):
    return TokenSampler(Sampling(**{"temperature": 1.0} | numbers))


def drawn(logits, n=300, **numbers):
    sampler = drawing(**numbers)
    return [sampler(np.array(logits, np.float32)) for _ in range(n)]


@max_examples(60)
@given(
    logits=hnp.arrays(np.float32, 12, elements=st.floats(-8, 8, width=32), unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(1, 12),
    top_p=st.sampled_from([0.1, 0.35, 0.77, 0.93]),
    min_p=st.sampled_from([0.01, 0.13, 0.5]),
)
def test_the_possible_tokens_are_those_of_transformers(logits, temperature, top_k, top_p, min_p):
    warpers = [hf.TemperatureLogitsWarper(temperature), hf.TopKLogitsWarper(top_k)]
    warpers += [hf.TopPLogitsWarper(top_p), hf.MinPLogitsWarper(min_p)]
    ids, before = torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits.copy())[None]
    theirs = hf.LogitsProcessorList(warpers)(ids, before)
    possible = set(torch.isfinite(theirs[0]).nonzero().flatten().tolist())
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    assert set(drawn(logits, **how)) <= possible


@each_of(
    ("logits", "how", "possible"),
    [
        # probabilities that round to one number are told apart by their logits
        ([0.0, 1e-38, 1.0, -9.0], {"top_p": 0.75}, {1, 2}),
        ([0.0] * 40 + [1.0] + [0.0] * 9, {"top_k": 3}, {0, 1, 40}),  # of equal ones the first
        *(([1e30, -1e30, 0.0], {"temperature": t, **how}, {0})
          for t in (0.01, 1e-40, 1e-50) for how in ({}, {"top_p": 0.5}, {"top_k": 2})),
    ],
)  # fmt: skip
def test_at_the_ends_of_float32_the_tokens_are_those_of_real_numbers(logits, how, possible):
    assert set(drawn(logits, 1000, **how)) == possible


@each_of("penalty", [0.5, 1.0, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    random = np.random.default_rng(0)
    logits = random.standard_normal((20, 50)).astype(np.float32)
    read = random.integers(0, 50, (20, 15))
    seen_tokens = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(seen_tokens, read, values=True, axis=1)
    theirs = hf.RepetitionPenaltyLogitsProcessor(penalty)(
        torch.from_numpy(read), torch.from_numpy(logits.copy())
    )
    before, sampler = logits.copy(), drawing(temperature=0.0, repetition_penalty=penalty)
    actual = [sampler(row, its) for row, its in zip(logits, seen_tokens, strict=True)]
    np.testing.assert_array_equal(actual, theirs.argmax(-1).numpy())
    np.testing.assert_array_equal(logits, before)


def test_temperature_one_draws_from_the_models_distribution_and_no_other_numbers_than_finite_ones():
    for bad in ([np.nan, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]):
        for temperature in (0.0, 1.0):
            with pytest.raises(Diverged, match="logits are not finite"):
                drawing(temperature=temperature)(np.array(bad, np.float32))
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([0.5, 0.3, 0.2, 0.0], np.float32))
    counts = np.bincount(drawn(logits, 10_000), minlength=4)
    assert (counts / 10_000).tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.015)
