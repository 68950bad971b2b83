"""What an optimizer promises besides its formula: state, groups, errors, and the choice by name."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from mlxhog import optim
from mlxhog.arena.workers import ENTRY_BYTES, Entry
from mlxhog.config import optimizers
from mlxhog.config.choices import OPTIMIZERS
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizer import GROUPS as FACTORS
from mlxhog.config.options import options
from mlxhog.config.strategies import Hogwild
from mlxhog.errors import ConfigError, ShapeError
from mlxhog.optim import SGD, AdamW, Adan, Apollo, Lion, Momentum, Muon, Soap
from mlxhog.optim.gradients import Rows
from mlxhog.optim.muon import polar_references
from mlxhog.optim.rule import StepWatch
from tests.optim.small import BIAS, EMBEDDING, MATRIX, N, initial, parameter, target
from tests.pairs import each_of

HIDDEN = frozenset({"matrix"})
GROUPS = {
    group: frozenset({name})
    for group, name in {"embedding": "embedding", "head": "matrix", "scalar": "bias"}.items()
}
EQUAL = dict.fromkeys(FACTORS.values(), 1.0)


NUMBERS = {
    "momentum": 0.6, "beta1": 0.8, "beta2": 0.9, "beta3": 0.7, "eps": 1e-6, "weight_decay": 0.2,
}  # fmt: skip


def chosen(name="adamw", **others):
    """One worker with an optimizer, and those of `NUMBERS` that it has."""
    has = options(OPTIMIZERS.find(name))
    own = {number: value for number, value in NUMBERS.items() if number in has}
    return TrainConfig(strategy="serial", optimizer={"name": name, **own}, **others)


def test_options_choose_the_optimizer():
    adamw = AdamW(beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.2)
    assert optim.build(chosen()) == adamw
    assert optim.build(chosen("momentum")) == Momentum(momentum=0.6, weight_decay=0.2)
    assert optim.build(chosen("sgd")) == SGD(weight_decay=0.2)
    lion = Lion(beta1=0.8, beta2=0.9, weight_decay=0.2)
    assert optim.build(chosen("lion")) == lion
    moments = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.2}
    assert optim.build(chosen("adan")) == Adan(**moments, beta3=0.7)
    soap = Soap(hidden=HIDDEN, **moments, precondition_every=5)
    assert optim.build(chosen("soap", precondition_every=5), HIDDEN) == soap
    apollo = Apollo(hidden=HIDDEN, **moments, rank=3, refresh_every=50, seed=7)
    config = chosen("apollo", projection_rank=3, projection_every=50, seed=7)
    assert optim.build(config, HIDDEN) == apollo
    mini = Apollo(hidden=HIDDEN, **moments, rank=1, tensor=True, scale=128.0)
    config = chosen("apollo-mini", projection_scale=128.0)
    assert optim.build(config, HIDDEN) == mini


def test_every_name_that_the_options_offer_makes_an_optimizer():
    for name in OPTIMIZERS.known():
        assert optim.build(TrainConfig(optimizer=name)).state_segments is not None


@each_of(
    ("options", "width", "workers", "lr", "beta1", "nesterov"),
    [
        ({"strategy": "serial"}, 128, 1, 3e-3, 0.9, 0.1),
        ({"strategy": "hogwild"}, 128, 3, 3e-3, 0.9, 0.1),
        ({"strategy": "hogwild"}, 128, 4, 3e-3, 0.95, 0.15),
        ({"strategy": "hogwild", "moments": "private"}, 128, 4, 3e-3, 0.9, 0.1),
        ({"strategy": "hogwild", "beta1": 0.9, "nesterov": 0.0}, 128, 4, 3e-3, 0.9, 0.0),
        ({"strategy": "hogwild"}, 512, 2, 1.5e-3, 0.9, 0.1),
        (
            {"strategy": "round_robin", "predict": "last", "moments": "shared"},
            128,
            4,
            3e-3,
            0.95,
            0.15,
        ),
        ({"strategy": "sync"}, 128, 4, 6e-3, 0.75, 0.1),
        ({"strategy": "sync"}, 128, 1, 3e-3, 0.9, 0.1),
        ({"strategy": "sync", "lr": 0.1, "beta1": 0.5}, 128, 4, 0.1, 0.5, 0.1),
        ({"strategy": "sync", "optimizer": "adamw"}, 512, 4, 1e-3, 0.9, None),
        ({"strategy": "hogwild", "optimizer": "lion"}, 64, 2, 1e-3, 0.9, None),
        ({"strategy": "hogwild", "optimizer": "momentum"}, 64, 2, 1e-3, None, None),
    ],
)
def test_what_is_left_open_follows_from_optimizer_width_and_strategy(
    options, width, workers, lr, beta1, nesterov
):
    settled = optim.for_model(TrainConfig(**options), width, HIDDEN, workers)
    numbers = optimizers.open_numbers(settled)
    assert settled.top_lr == pytest.approx(lr)
    assert (numbers.get("beta1"), numbers.get("nesterov")) == (beta1, nesterov)


def test_muon_without_hidden_matrices_is_adamw_at_its_step_size():
    settled = optim.for_model(TrainConfig(strategy="serial"), 128, frozenset(), 1)
    assert (settled.optimizer, settled.lr) == (optimizers.AdamW(beta1=0.9, **EQUAL), 1e-3)


def test_what_only_muon_has_goes_with_it_where_a_model_has_no_hidden_matrices():
    config = TrainConfig(predict="last", nesterov=0.2, orthogonalization="ns5", eps=1e-6)
    settled = optim.for_model(config, 128, frozenset(), 2)
    assert settled.optimizer == optimizers.AdamW(beta1=0.9, eps=1e-6, **EQUAL)
    assert (settled.strategy, settled.prediction) == (Hogwild(), "own")
    shared = replace(config, moments="shared")
    assert optim.for_model(shared, 128, frozenset(), 2).prediction == "last"
    assert optim.for_model(config, 128, HIDDEN, 2).prediction == "last"


def test_the_second_moment_may_forget_by_tokens():
    config = TrainConfig(optimizer="adamw", beta2_half_life=4096)
    built = optim.build(config, tokens_per_step=512)
    assert isinstance(built, AdamW)
    assert built.beta2**8 == pytest.approx(0.5)  # 8 steps are 4,096 tokens
    twice = optim.build(config, tokens_per_step=1024)
    assert isinstance(twice, AdamW)
    assert twice.beta2 == pytest.approx(built.beta2**2)


def of_numbers():
    return [(name, number) for name, one in OPTIMIZERS.known().items() for number in options(one)]


OTHER = {
    "beta1": 0.5, "nesterov": 0.7, "orthogonalization": "ns5", "rows": 2,
    "rank": 2, "scale": 9.0, "compat": "official", "moments": "shared", "beta2_half_life": 100,
    "every": 2, "device": "worker", **dict.fromkeys(FACTORS.values(), 3.0),
}  # fmt: skip
"""Another value of each number than its default; half of it where none stands here."""


@each_of(("name", "number"), of_numbers())
def test_every_number_of_an_optimizer_changes_its_steps_or_its_state(name, number):
    """After a gradient of zeros, and with a long one, so that guards and limits act, too."""
    spec = options(OPTIMIZERS.find(name))[number]
    value = OTHER.get(number) or float(str(spec.default)) / 2
    if number == "eps":  # in sight beside the second moment
        value = 0.1

    def trained(**numbers):
        choice = replace(OPTIMIZERS.read(name), **numbers)
        config = TrainConfig(strategy="serial", optimizer=choice)
        rule = optim.build(config, HIDDEN, groups=GROUPS, tokens_per_step=10)
        flat, random = initial(), np.random.default_rng(1)
        on_worker = choice.orthogonalizes_on_worker(on_gpu=False)
        polar = polar_references if on_worker else None
        of = replace(target(rule, flat, "matrix"), polar=polar)
        for step in range(1, 7):
            scale = np.float32([1.0, 0.0, 0.0, 1.0, 50.0, 1.0][step - 1])
            grads = {
                slot.name: scale * random.standard_normal(slot.shape, np.float32)
                for slot in (MATRIX, BIAS, EMBEDDING)
            }
            rule.step(of, grads, lr=0.1, step=step)
        return flat.tobytes(), rule.shared_segments

    assert trained(**{number: value}) != trained()


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        TrainConfig(optimizer="adam")
    with pytest.raises(ConfigError, match="known are muon, adamw"):
        TrainConfig(optimizer="rmsprop")


def test_the_state_of_each_optimizer_is_private_unless_it_is_asked_to_share():
    def segments(result):
        return result.state_segments, result.shared_segments

    assert segments(SGD()) == ((), ())
    assert segments(Momentum()) == (("m",), ())
    assert segments(AdamW()) == (("m", "v"), ())
    assert segments(AdamW(shared=True)) == ((), ("m", "v"))
    assert segments(optim.build(chosen("muon", moments="shared"))) == ((), ("m", "v"))


def test_two_workers_share_moments_and_count_their_updates_together():
    rule = AdamW(beta1=0.5, weight_decay=0.0, eps=0.0, shared=True)
    flat = np.zeros(N, np.float32)
    first = target(rule, flat)
    second = replace(target(rule, flat), shared=first.shared)
    grad = {"bias": np.full(BIAS.shape, 3.0, np.float32)}
    rule.step(first, grad, lr=1.0, step=1, shared_step=1)
    rule.step(second, grad, lr=1.0, step=1, shared_step=2)
    # A constant gradient: with the right count each bias-corrected step is lr * sign(g).
    np.testing.assert_allclose(parameter(flat, BIAS), -2.0, rtol=1e-5)


@each_of(
    "rule",
    [
        SGD(weight_decay=0.5),
        Momentum(weight_decay=0.5),
        AdamW(weight_decay=0.5),
        Lion(weight_decay=0.5),
        Apollo(weight_decay=0.5, hidden=frozenset()),
        Apollo(weight_decay=0.5, hidden=frozenset({"matrix"})),
    ],
    ids=["sgd", "momentum", "adamw", "lion", "adam of apollo", "apollo"],
)
def test_weight_decay_touches_only_its_group(rule):
    flat = initial()
    before = flat.copy()
    zeros = {slot.name: np.zeros(slot.shape, np.float32) for slot in (MATRIX, BIAS)}
    rule.step(target(rule, flat, "matrix"), zeros, lr=0.1, step=1)
    np.testing.assert_allclose(parameter(flat, MATRIX), 0.95 * parameter(before, MATRIX), rtol=1e-6)
    np.testing.assert_array_equal(parameter(flat, BIAS), parameter(before, BIAS))


BAD_GRADIENTS = {
    "unknown name": ("nobody", np.zeros(3, np.float32)),
    "shape": ("bias", np.zeros(8, np.float32)),
    "transposed": ("matrix", np.zeros((9, 6), np.float32)),
    "dtype": ("bias", np.zeros(9)),
    "strided": ("bias", np.zeros(18, np.float32)[::2]),
    "row width": ("embedding", Rows(np.zeros(1, np.int32), np.zeros((1, 4), np.float32))),
    "row outside": ("embedding", Rows(np.array([11], np.int32), np.zeros((1, 5), np.float32))),
    "negative row": ("embedding", Rows(np.array([-1], np.int32), np.zeros((1, 5), np.float32))),
    "row dtype": ("embedding", Rows(np.array([1]), np.zeros((1, 5), np.float32))),
}


class Clock:
    """A clock that stands still unless a test moves it."""

    def __init__(self):
        self.ns = 1_000

    def __call__(self):
        return self.ns


def test_the_time_of_a_step_is_neither_that_of_its_write_nor_of_a_wait(monkeypatch):
    clock, entry = Clock(), Entry(1, np.zeros(ENTRY_BYTES, np.uint8))
    monkeypatch.setattr("mlxhog.optim.rule.monotonic_ns", clock)
    watch = StepWatch(entry)
    with watch.computing():
        clock.ns += 5
        entry.wait_ns += 2
        with watch.writing():
            clock.ns += 70
            entry.wait_ns += 60
        clock.ns += 4
    assert entry.optimizer_ns == 5 - 2 + 4


class Writes(StepWatch):
    """Counts the writes whose time is measured by itself."""

    writes = 0

    @contextmanager
    def writing(self):
        self.writes += 1
        with super().writing():
            yield


@each_of(
    ("optimizer", "apart"),
    [(AdamW(), False), (Momentum(), False), (SGD(), True), (Lion(), True), (Adan(), True),
     (Muon(hidden=HIDDEN), True)],
)  # fmt: skip
def test_a_direction_is_written_apart_from_its_computation(optimizer, apart):
    watch = Writes(Entry(1, np.zeros(ENTRY_BYTES, np.uint8)))
    where = replace(target(optimizer, initial()), watch=watch)
    optimizer.step(where, {"matrix": np.ones(MATRIX.shape, np.float32)}, lr=0.1, step=1)
    assert (watch.writes > 0) == apart


@each_of("case", BAD_GRADIENTS)
@each_of(
    "rule",
    [SGD(), Momentum(), AdamW(), Lion(), Adan(), Apollo(hidden=HIDDEN), Soap(hidden=HIDDEN)],
    ids=["sgd", "momentum", "adamw", "lion", "adan", "apollo", "soap"],
)
def test_a_gradient_that_does_not_fit_is_refused_before_anything_is_written(rule, case):
    name, grad = BAD_GRADIENTS[case]
    flat = initial()
    before = flat.copy()
    good = np.ones(MATRIX.shape, np.float32)
    grads = {"matrix": good, name: grad} if name != "matrix" else {name: grad}
    with pytest.raises(ShapeError, match=name):
        rule.step(target(rule, flat), grads, lr=0.1, step=1)
    np.testing.assert_array_equal(flat, before)


def test_a_dense_gradient_of_a_rows_parameter_reaches_every_row():
    rule = SGD()
    flat = np.zeros(N, np.float32)
    rule.step(
        target(rule, flat), {"embedding": np.ones(EMBEDDING.shape, np.float32)}, lr=1.0, step=1
    )
    np.testing.assert_array_equal(parameter(flat, EMBEDDING), -1)
    assert np.count_nonzero(flat) == EMBEDDING.size
