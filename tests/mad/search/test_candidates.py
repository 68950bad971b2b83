import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ConfigError
from mlxhog.mad.run import params, state
from mlxhog.mad.search.candidates import LISTED, CandidateSet
from mlxhog.mad.search.samplers import SAMPLERS
from mlxhog.mad.search.space import DEEPEST, to_space
from tests.mad.search.spaces import LENGTH, SMALL, D, candidates, every
from tests.pairs import each_of, max_examples


def enumerated(space):
    """Every candidate, found by trying every sequence of the space."""
    bounds, block = (
        {params: space.bounds.get("params"), state: space.bounds.get("state")},
        space.block_at(D),
    )
    lengths = {params: (D,), state: (D, LENGTH)}
    return [
        layers
        for depth in space.depths
        for layers in itertools.product(*itertools.islice(itertools.cycle(block), depth))
        if all(
            [layer.name for layer in layers].count(name) <= most
            for name, most in space.counts.items()
        )
        and all(most is None or of(layers, *lengths[of]) <= most for of, most in bounds.items())
    ]


@given(
    template=st.sampled_from(["alternate", "free"]),
    depth=st.sampled_from([1, 3, 4, [1, 4]]),
    most=st.dictionaries(st.sampled_from(["gated-conv", "mlp"]), st.integers(1, 3)),
    budget=st.fixed_dictionaries(
        {}, optional={"params": st.integers(4000, 40_000), "state": st.integers(1, 300)}
    ),
)
@max_examples(25)
def test_candidates_are_counted_and_numbered_as_if_all_were_tried(template, depth, most, budget):
    keys = {"template": template, "depth": depth, "max_count": most, "budget": budget}
    space = to_space(SMALL | keys)
    expected = enumerated(space)
    if not expected:
        with pytest.raises(ConfigError, match=r"no candidate"):
            CandidateSet(space, D, LENGTH)
        return
    choices = CandidateSet(space, D, LENGTH)
    assert choices.count == len(expected)
    assert every(choices) == expected
    assert all(layers in choices for layers in expected)


def test_a_space_without_bounds_is_counted_however_large():
    choices = candidates(depth=40)
    assert choices.count == 8**20
    assert choices.candidate(8**20 - 1) in choices
    assert candidates(depth=DEEPEST).count == 8 ** (DEEPEST // 2)


@each_of("name", SAMPLERS)
def test_a_large_space_with_bounds_is_not_counted_and_a_search_finds_what_is_within(name):
    assert candidates(depth=12).count > LISTED
    choices = candidates(depth=12, budget={"params": 85_000})
    assert choices.count is None
    sampler = SAMPLERS[name](choices, 0)
    proposed = [sampler.ask() for _ in range(20)]
    assert len(set(proposed)) == 20
    assert all(params(layers, D) <= 85_000 for layers in proposed)


@each_of(
    ("keys", "message"),
    [
        ({"max_count": {"gated-conv": 1}}, "no candidate is within max_count and budget; raise a"),
        ({"depth": 12, "budget": {"params": 2_000}}, "budget in 10,000 draws; raise a bound"),
        ({"mixers": ["mlstm(h5)"]}, "mlstm at width 32"),
        ({"start": ["mlp swiglu mlp swiglu"]}, "'mlp swiglu mlp swiglu', which is not in the spac"),
    ],
)
def test_a_space_without_a_candidate_says_what_is_in_the_way(keys, message):
    with pytest.raises(ConfigError, match=message):
        candidates(**keys)


def test_the_state_of_a_cache_is_counted_at_the_length_that_the_budget_says():
    keys = {"mixers": ["gated-conv", "mh-attention(h4)"], "channels": ["mlp"]}
    assert candidates(**keys, budget={"state": 1000}).count == 1
    assert candidates(**keys, budget={"state": 1000, "length": 4}).count == 4
