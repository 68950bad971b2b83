import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ConfigError
from mlxhog.mad.search.budget import params, state
from mlxhog.mad.search.candidates import LISTED, CandidateSet
from mlxhog.mad.search.samplers import SAMPLERS, make_sampler
from mlxhog.mad.search.space import DEEPEST, to_space
from mlxhog.models.mad.layers import BUILT_IN, at_width, make
from tests.mad.search.spaces import LENGTH, SMALL, D, candidates, every
from tests.pairs import max_examples

MIXERS = [layer.name for layer in BUILT_IN if layer.kind == "mixer"]
GROWS = {"mh-attention", "hyena", "mh-hyena", "path"}
"""Caches and filters as long as the sequence: no number of theirs makes them shorter."""
FLAT = {"canon", "gated-conv", "slstm", "slstm-v1"}
"""A few numbers per channel of the model."""


def enumerated(space):
    """Every candidate, found by trying every sequence of the space."""
    budget = space.budget
    return [
        layers
        for depth in space.depths
        for layers in itertools.product(*space.slots(depth))
        if all(
            [layer.name for layer in layers].count(name) <= most
            for name, most in space.max_count.items()
        )
        and (budget.params is None or params(layers, D) <= budget.params)
        and (budget.state is None or state(layers, D, LENGTH) <= budget.state)
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
    assert all(choices.plan(layers) == layers for layers in expected)


def test_a_space_without_bounds_is_counted_however_large():
    choices = candidates(depth=40)
    last = choices.candidate(8**20 - 1)
    assert choices.count == 8**20
    assert last is not None
    assert choices.plan(last) == last
    assert candidates(depth=DEEPEST).count == 8 ** (DEEPEST // 2)


def test_a_large_space_with_bounds_is_not_counted_and_a_search_finds_what_is_within():
    keys = {"depth": 12, "budget": {"params": 85_000}}
    assert candidates(depth=12).count > LISTED
    choices = candidates(**keys)
    assert (choices.count, choices.unused()) == (None, ())
    for name in SAMPLERS:
        sampler = make_sampler(name, choices, 0)
        proposed = [sampler.ask() for _ in range(20)]
        assert len(set(proposed)) == 20
        for layers in proposed:
            assert layers is not None
            assert params(layers, D) <= 85_000


def test_a_large_space_without_a_candidate_says_how_far_the_draws_were_off():
    with pytest.raises(ConfigError, match=r"in 10,000 draws: the smallest params is [\d,]+, "):
        candidates(depth=12, budget={"params": 2_000})


@pytest.mark.parametrize("name", ["params", "state"])
def test_a_budget_that_nothing_keeps_says_how_much_is_lacking(name):
    size = {"params": lambda x: params(x, D), "state": lambda x: state(x, D, LENGTH)}[name]
    mixers = [{"type": "gated-conv", "kernel": [2, 3]}]
    least = min(size(layers) for layers in every(candidates(mixers=mixers)))
    assert candidates(mixers=mixers, budget={name: least}).count
    with pytest.raises(ConfigError, match=f"is {least:,}, 1 over budget.{name} {least - 1:,}"):
        candidates(mixers=mixers, budget={name: least - 1})


def test_two_budgets_that_cannot_be_kept_together_say_so():
    keys = {
        "depth": 2,
        "mixers": ["slstm", "mlstm"],
        "channels": ["swiglu"],
    }
    listed = every(candidates(**keys))
    small = min(params(x, D) for x in listed)
    flat = min(state(x, D, LENGTH) for x in listed)
    assert not [x for x in listed if params(x, D) <= small and state(x, D, LENGTH) <= flat]
    with pytest.raises(ConfigError, match="none is within budget.params and budget.state at once"):
        candidates(**keys, budget={"params": small, "state": flat})


def test_counts_that_leave_a_slot_empty_say_so():
    with pytest.raises(ConfigError, match="leaves no candidate; raise a count"):
        candidates(max_count={"gated-conv": 1})


RESCALED = {
    "mixers": ["mlstm(h2)", "gated-conv"],
    "channels": ["swiglu", "mlp"],
}


def test_rescaling_keeps_every_candidate_within_the_budget_and_changes_heads_and_widths_alone():
    budget = {"params": 22_000, "state": 1000, "rescale": True}
    choices = candidates(**RESCALED, budget=budget)
    assert choices.count == 16
    for layers in every(choices):
        assert params(layers, D) <= 22_000
        assert state(layers, D, LENGTH) <= 1000
        plan = choices.plan(layers)
        assert plan is not None
        assert [layer.name for layer in plan] == [layer.name for layer in layers]
        assert choices.build(plan) == layers


def test_a_candidate_within_the_budget_is_not_rescaled():
    free = candidates(**RESCALED)
    choices = candidates(**RESCALED, budget={"params": 10**9, "state": 10**9, "rescale": True})
    assert every(choices) == every(free)


def test_rescaling_spares_the_layers_that_are_small():
    keys = {"depth": 2, "mixers": ["mlstm(h2)"], "channels": ["mlp"]}
    ((mixer, channel),) = every(candidates(**keys, budget={"state": 500, "rescale": True}))
    assert (mixer.heads, channel.inner) == (4, None)
    ((mixer, channel),) = every(candidates(**keys, budget={"params": 12_000, "rescale": True}))
    assert (mixer.heads, channel.inner) == (2, 96)


def test_a_candidate_that_no_rescaling_makes_fit_is_rejected():
    budget = {"params": 11_800, "rescale": True}
    expected = every(candidates(**RESCALED, budget=budget))
    assert len(expected) == 4
    assert all("mlstm" not in {layer.name for layer in layers} for layers in expected)


@pytest.mark.parametrize("mixer", sorted(set(MIXERS) - GROWS - FLAT))
def test_every_mixer_with_a_memory_of_fixed_size_shrinks_by_a_third_and_keeps_its_kind(mixer):
    whole = state([make(mixer)], 64, 64)
    keys = {"depth": 1, "mixers": [mixer], "budget": {"state": 2 * whole // 3, "rescale": True}}
    ((choices,),) = every(CandidateSet(to_space(keys), 64, 64))
    assert choices.name == mixer
    assert 0 < state([choices], 64, 64) <= 2 * whole // 3


def test_a_space_may_have_every_layer_there_is():
    channels = [layer.name for layer in BUILT_IN if layer.kind == "channel"]
    budget = {"params": 60_000, "state": 5_000, "rescale": True}
    space = to_space({"depth": 2, "mixers": MIXERS, "channels": channels, "budget": budget})
    choices = CandidateSet(space, 64, LENGTH)
    assert {layers[1].name for layers in every(choices)} == set(channels)
    for layers in every(choices):
        assert params(layers, 64) <= 60_000
        assert choices.plan(layers) == at_width((make(layers[0].name), make(layers[1].name)), 64)


def test_the_state_of_a_cache_is_counted_at_the_length_that_the_budget_says():
    keys = {"mixers": ["gated-conv", "mh-attention(h4)"], "channels": ["mlp"]}
    assert candidates(**keys, budget={"state": 1000}).count == 1
    assert candidates(**keys, budget={"state": 1000, "length": 4}).count == 4


def test_choices_that_rescaling_would_make_equal_are_refused():
    mixers = [{"type": "mlstm", "heads": [1, 4]}]
    with pytest.raises(ConfigError, match=r"mlstm\(h1\) and mlstm\(h4\) differ in nothing"):
        candidates(mixers=mixers, budget={"state": 500, "rescale": True})


@given(
    state_bound=st.integers(200, 3000),
    params_bound=st.integers(6_000, 40_000),
)
@max_examples(40)
def test_rescaled_candidates_and_their_plans_correspond_one_to_one(state_bound, params_bound):
    space = to_space(
        {
            "depth": [2, 4],
            **RESCALED,
            "budget": {"state": state_bound, "params": params_bound, "rescale": True},
        }
    )
    try:
        choices = CandidateSet(space, D, LENGTH)
    except ConfigError:
        return
    listed = every(choices)
    assert len(set(listed)) == choices.count
    assert all(choices.plan(layers) is not None for layers in listed)
    assert all(params(layers, D) <= params_bound for layers in listed)
    assert all(state(layers, D, LENGTH) <= state_bound for layers in listed)


def test_choices_that_no_candidate_has_room_for_are_named():
    keys = {"mixers": ["gated-conv", "slstm", "mlstm"], "channels": ["mlp"]}
    assert candidates(**keys).unused() == ()
    # mLSTM keeps 388 numbers, sLSTM 128 and the convolution 64: the first fits beside nothing.
    tight = candidates(**keys, budget={"state": 400})
    assert tight.unused() == (make("mlstm"),)
    assert {layer for layers in every(tight) for layer in layers} == {
        *(make(name) for name in ("gated-conv", "slstm", "mlp"))
    }
