"""The promises of every sampler of the registry, and those of the ones that learn."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.mad.samplers.samplers import MUTATIONS, SAMPLERS
from mlxhog.models.mad.sequence import canonical
from tests.mad.samplers.test_space import candidates, convolutions, every

samplers = pytest.mark.parametrize("name", SAMPLERS)
DEEP = {"depth": 8, "mixers": convolutions(6), "channels": ["swiglu", "mlp", "geglu"]}
"""104,976 candidates."""
FEW = {"mixers": convolutions(3)}
"""36 candidates of depth 4 and 6 of depth 2: more than any sampler draws at random first."""


def score(layers):
    """Best for kernels 5 2 6 1 and the maps below; a pair of neighbours counts on its own."""
    kernels = [getattr(layer, "kernel", 0) for layer in layers[::2]]
    maps = [layer.name for layer in layers[1::2]]
    right = [a == b for a, b in zip(kernels, (5, 2, 6, 1), strict=False)]
    right += [a == b for a, b in zip(maps, ("mlp", "swiglu", "geglu", "mlp"), strict=False)]
    return sum(right) + 0.5 * (kernels[:2] == [5, 2])


def proceed(sampler, budget):
    """The proposals of a sampler, one candidate at a time."""
    proposed = []
    while len(proposed) < budget and (layers := sampler.ask()) is not None:
        sampler.tell(layers, score(layers))
        proposed.append(layers)
    return proposed


def search(choices, name, seed, budget):
    return proceed(SAMPLERS[name](choices, seed), budget)


@samplers
def test_the_seed_decides_the_order_but_that_of_grid_and_a_resumed_sampler_goes_on(name):
    choices = candidates()
    whole = search(choices, name, 5, 16)
    assert search(choices, name, 5, 16) == whole
    assert (search(choices, name, 4, 16) == whole) == (name == "grid")
    assert (whole == every(choices)[:16]) == (name == "grid")
    for killed_after in (1, 11):
        resumed = SAMPLERS[name](choices, 5)
        for layers in whole[:killed_after]:
            resumed.register(layers)
            resumed.tell(layers, score(layers))
        assert proceed(resumed, 16 - killed_after) == whole[killed_after:]


@samplers
def test_every_candidate_is_proposed_once_whatever_was_in_progress_when_a_study_was_killed(name):
    choices = candidates(**FEW, depth=[2, 4])
    resumed = SAMPLERS[name](choices, 5)
    known = [choices.candidate(number) for number in range(0, 42, 2)]
    for layers in known[:10]:
        resumed.tell(layers, score(layers))
    for layers in known[10:]:
        resumed.register(layers)
    asked = [resumed.ask() for _ in range(3)]
    for layers in asked:  # it grows meanwhile
        resumed.tell(layers, score(layers))
        if (following := resumed.ask()) is not None:
            asked.append(following)
    assert set(asked) == set(every(choices)) - set(known)
    assert len(asked) == len(set(asked))


@samplers
def test_the_score_of_repeated_runs_takes_the_place_of_the_first_one(name):
    choices = candidates()
    first, second = (SAMPLERS[name](choices, 2) for _ in range(2))
    proposed = search(choices, "random", 9, 20)
    for layers in proposed:
        first.tell(layers, 0.0)
        second.tell(layers, score(layers))
    for layers in reversed(proposed):
        first.tell(layers, score(layers))
    assert [first.ask() for _ in range(5)] == [second.ask() for _ in range(5)]


@pytest.mark.parametrize(("name", "seeds"), [("evolution", 16), ("tpe", 2)])
def test_a_search_that_learns_beats_random_draws_of_the_same_number(name, seeds):
    choices = candidates(**DEEP)
    best, chance = (
        fmean(max(map(score, search(choices, one, seed, 100))) for seed in range(seeds))
        for one in (name, "random")
    )
    assert best > chance + 0.5


def test_an_evolution_begins_with_what_the_space_says():
    start = ["gated-conv(kernel=2) mlp gated-conv(kernel=4) swiglu"]
    choices = candidates(start=start)
    assert canonical(search(choices, "evolution", 0, 1)[0]) == start[0]


@given(
    template=st.sampled_from(["alternate", "free"]),
    depth=st.sampled_from([1, 2, 4, [2, 6]]),
    before=st.sampled_from([None, "canon"]),
    mutation=st.sampled_from(MUTATIONS),
    number=st.integers(0, 10**9),
    stream=st.randoms(use_true_random=False),
)
def test_a_change_keeps_to_the_slots_and_depths_of_the_space(
    template, depth, before, mutation, number, stream
):
    choices = candidates(
        template=template, depth=2 if before and depth == 1 else depth, before=before
    )
    child = mutation(choices.candidate(number % choices.count), choices, stream)
    assert len(child) in choices.depths
    assert all(one in slot for one, slot in zip(child, choices.slots(len(child)), strict=True))
