"""The candidates of a space file are those of its rules, and a mistake is answered in words."""

import itertools

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ConfigError
from mlxhog.mad.run import params, state
from mlxhog.mad.samplers import samplers as sampling
from mlxhog.mad.samplers import space as space_file
from mlxhog.mad.samplers.samplers import SAMPLERS
from mlxhog.mad.samplers.space import MAX_DEPTH, MAX_LISTED, CandidateSet, read_space, to_space
from mlxhog.models.mad.sequence import canonical
from tests.pairs import each_of, max_examples

D, LENGTH = 32, 16


def convolutions(n):
    """Gated convolutions of 1 to n taps, as a space has them."""
    return [f"gated-conv(kernel={k + 1})" for k in range(n)]


SMALL = {"depth": 4, "mixers": convolutions(4), "channels": ["swiglu", "mlp"]}


def candidates(base=SMALL, **keys):
    return CandidateSet(to_space(base | keys), D, LENGTH)


def every(choices):
    """The candidates of a listed space."""
    return [layers for n in range(choices.numbers) if (layers := choices.candidate(n))]


BASE = {"depth": 4, "mixers": ["mlstm", "slstm"], "channels": ["swiglu"]}
MIXERS, ALL, CANON = "mlstm(h4) slstm(h4)", "mlstm(h4) slstm(h4) swiglu", "canon(kernel=2)"
NUMBERS = {"mixers": ["mlstm(h2)", {"type": "mlstm", "heads": 8}]}


@each_of(
    ("keys", "depths", "block"),
    [
        ({}, (4,), [MIXERS, "swiglu"]),
        ({"depth": [4, 8]}, (4, 6, 8), [MIXERS, "swiglu"]),
        ({"template": "free", "depth": [4, 7]}, (4, 5, 6, 7), [ALL]),
        ({"template": "free", "depth": [2, 4, 8]}, (2, 4, 8), [ALL]),
        (NUMBERS, (4,), ["mlstm(h2) mlstm(h8)", "swiglu"]),
        ({"before": CANON, "depth": [4, 12]}, (4, 8, 12), [CANON, MIXERS, CANON, "swiglu"]),
        ({"before": "canon", "template": "free", "depth": [2, 5]}, (2, 4), ["canon", ALL]),
    ],
)  # fmt: skip
def test_a_space_has_depths_and_the_choices_of_the_part_that_repeats(keys, depths, block):
    choices = candidates(BASE, **keys)
    assert choices.depths == depths
    assert [canonical(slot) for slot in choices.block] == block


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
    keys = {"template": template, "depth": depth}
    whole, bounds = candidates(**keys), {"max_count": most, "budget": budget}
    expected = [
        layers
        for depth in whole.depths
        for layers in itertools.product(*whole.slots(depth))
        if all([layer.name for layer in layers].count(name) <= n for name, n in most.items())
        and params(layers, D) <= budget.get("params", 1e9)
        and state(layers, D, LENGTH) <= budget.get("state", 1e9)
    ]
    if not expected:
        with pytest.raises(ConfigError, match=r"no candidate"):
            candidates(**keys, **bounds)
        return
    choices = candidates(**keys, **bounds)
    assert choices.count == len(expected)
    assert every(choices) == expected
    assert all(layers in choices for layers in expected)


def test_a_space_without_bounds_is_counted_however_large():
    choices = candidates(depth=40)
    assert choices.count == 8**20
    assert choices.candidate(8**20 - 1) in choices
    assert candidates(depth=MAX_DEPTH).count == 8 ** (MAX_DEPTH // 2)


@each_of("name", SAMPLERS)
def test_a_large_space_with_bounds_is_not_counted_and_a_search_finds_what_is_within(name):
    assert candidates(depth=12).count > MAX_LISTED
    choices = candidates(depth=12, budget={"params": 85_000})
    assert choices.count is None
    sampler = SAMPLERS[name](choices, 0)
    proposed = [sampler.ask() for _ in range(20)]
    assert len(set(proposed)) == 20
    assert all(params(layers, D) <= 85_000 for layers in proposed)


@each_of("name", ["grid", "random"])
def test_a_resumed_search_of_such_a_space_goes_on_however_many_were_proposed(name, monkeypatch):
    monkeypatch.setattr(sampling, "MAX_DRAWS", 50)
    choices = candidates(depth=12, budget={"params": 110_000})
    assert choices.count is None
    whole, resumed = (SAMPLERS[name](choices, 0) for _ in range(2))
    proposed = [whole.ask() for _ in range(60)]
    assert None not in proposed
    for layers in proposed:
        resumed.register(layers)
    assert resumed.ask() == whole.ask() is not None


def test_a_search_ends_after_many_numbers_in_a_row_that_are_no_candidates(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_DRAWS", 50)
    choices = candidates(depth=12, budget={"params": 110_000})
    monkeypatch.setattr(choices, "candidate", lambda number: None)
    assert SAMPLERS["grid"](choices, 0).ask() is None


def test_the_state_of_a_cache_is_counted_at_the_length_of_the_rows():
    keys = {"mixers": ["gated-conv", "mh-attention(h4)"], "channels": ["mlp"]}
    assert candidates(**keys, budget={"state": 1000}).count == 1


@each_of(
    ("keys", "message"),
    [
        ({"mixxers": ["mlstm"]}, "space has no 'mixxers'; did you mean 'mixers'"),
        ({"mixers": ["swiglu"]}, "swiglu is a channel; list it under channels"),
        ({"mixers": "mlstm"}, "mixers is 'mlstm'; wanted a list"),
        ({"channels": []}, "space has no channels"),
        ({"before": "canon", "depth": 3}, "depth is 3; with a layer before each other, .* even"),
        ({"before": "canon mlstm"}, "before is 'canon mlstm'; give one layer"),
        ({"depth": None}, "'depth' is missing"),
        ({"depth": [8, 4]}, "rising numbers"),
        ({"suite": "lm:soon"}, "suite is 'lm:soon'; suite lm:soon has no budget of a run"),
        ({"suite": "lmm"}, "suite is 'lmm'; no suite 'lmm'; did you mean 'lm'"),
        ({"depth": 1000}, "depth is 1000; give a whole number above 0, 256 at most"),
        ({"budget": {"param": 7}}, "budget has no 'param'; did you mean 'params'"),
        ({"budget": {"params": "many"}}, "budget.params is 'many'"),
        # a space without a candidate
        ({"depth": 8, "max_count": {"mlstm": 1, "slstm": 1}}, "no candidate is within max_count"),
        ({"depth": 40, "budget": {"params": 2_000}}, "budget in 10,000 draws; raise a bound"),
        ({"mixers": ["mlstm(h5)"]}, "mlstm at width 32"),
        ({"start": ["mlp swiglu mlp swiglu"]}, "'mlp swiglu mlp swiglu', which is not in the spac"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(keys, message):
    with pytest.raises(ConfigError, match=message):
        candidates(BASE, **keys)


@each_of(
    ("text", "message"),
    [
        ("space: 4", "space is 4; write keys below it"),
        ("space:", "space is missing"),
        ("- 1", r"mine.yaml is \[1\]; write lines"),
        ("space: {depth: [", "cannot read the space"),
    ],
)
def test_a_file_that_is_no_space_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_space(path)
    assert str(path) in str(caught.value)


def test_a_space_may_name_a_suite_with_a_budget(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("space: {depth: 2, mixers: [gated-conv], channels: [swiglu], suite: lm:60s}\n")
    assert to_space(read_space(path)).suite == "lm:60s"
    assert to_space(BASE | {"suite": "lm:2ktok+recall"}).suite == "lm:2ktok+recall"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, message in (("space-smal", "did you mean 'space-small'"), (tmp_path, "directory")):
        with pytest.raises(ConfigError, match=message):
            read_space(path)


def test_the_example_in_the_documentation_is_a_space():
    lines = (space_file.__doc__ or "").splitlines()
    text = "\n".join(line for line in lines if line.startswith("    "))
    assert CandidateSet(to_space(yaml.safe_load(text)["space"]), 128, 256).count > 0
