"""Which optimizer the options of a run make, and what follows from model, strategy and workers."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from mlxhog import optim, strategies
from mlxhog.arena.workers import ENTRY_BYTES, Entry
from mlxhog.config.components import OPTIMIZERS
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import read
from mlxhog.models.registry import load_architecture
from mlxhog.optim import GROUPS as FACTORS
from mlxhog.optim import AdamW, Muon, RunContext
from mlxhog.optim.muon import MANY_WORKERS, on_cpu
from mlxhog.optim.rule import StepWatch
from mlxhog.strategies import Hogwild, prediction_of
from tests.optim.small import HIDDEN, chosen, dense_gradients, initial, target
from tests.pairs import each_of

GROUPS = {
    group: frozenset({name})
    for group, name in {"embedding": "embedding", "head": "matrix", "scalar": "bias"}.items()
}
MOMENTS = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.2}


def test_a_run_gives_its_optimizer_what_it_needs_beside_its_hyperparameters():
    for moments in ("private", "shared"):
        config = chosen("muon", moments=moments, seed=7)
        built, shared = strategies.build_optimizer(config, HIDDEN, threads=2), moments == "shared"
        use = RunContext(hidden=HIDDEN, threads=2, seed=7, shared=shared)
        assert built == Muon(run=use, moments=moments, **MOMENTS)
        assert built.shared_segments == (("m", "v") if shared else ())


SHARED = {"strategy": "hogwild"}
SYNC = {"strategy": "sync"}
PREDICTED = {"strategy": "round_robin", "predict": "last", "moments": "shared"}


@each_of(
    ("options", "width", "vocabulary", "workers", "lr", "beta1", "nesterov"),
    [
        (SHARED, 128, 0, 3, 3e-3, 0.75, 0.1),
        (SHARED, 128, 0, 4, 3e-3, 0.95, 0.15),
        ({**SHARED, "moments": "private"}, 128, 0, 4, 3e-3, 0.75, 0.1),
        ({**SHARED, "beta1": 0.9, "nesterov": 0.0}, 128, 0, 4, 3e-3, 0.9, 0.0),
        (SHARED, 512, 0, 2, 1.5e-3, 0.75, 0.1),
        (SHARED, 128, 4096, 2, 6.5e-3, 0.75, 0.1),
        (PREDICTED, 128, 0, 4, 3e-3, 0.95, 0.15),
        (SYNC, 128, 320, 4, 6e-3, 0.75, 0.1),
        (SYNC, 128, 4096, 4, 0.013, 0.75, 0.1),
        ({**SYNC, "lr": 0.1, "beta1": 0.5}, 128, 0, 4, 0.1, 0.5, 0.1),
        ({**SYNC, "optimizer": "adamw"}, 512, 4096, 4, 1e-3, 0.9, None),
        ({**SHARED, "optimizer": "lion"}, 64, 0, 2, 1e-3, 0.9, None),
        ({**SHARED, "init_from": "latest", "adapter": "lora"}, 128, 0, 2, 0.015, 0.75, 0.1),
    ],
)
def test_what_is_left_open_follows_from_optimizer_model_and_strategy(
    options, width, vocabulary, workers, lr, beta1, nesterov
):
    config = TrainConfig(**options)
    settled = strategies.for_model(config, width, HIDDEN, workers, vocabulary=vocabulary)
    numbers = optim.open_hyperparameters(settled)
    assert settled.top_lr == pytest.approx(lr)
    assert (numbers.get("beta1"), numbers.get("nesterov")) == (beta1, nesterov)


def test_helps_name_the_workers_from_which_on_muon_has_other_defaults():
    number = {4: "four"}[MANY_WORKERS]
    for name in ("beta1", "nesterov"):
        assert f"extrapolation for {number} or more workers" in options(Muon)[name].help


def test_muon_without_hidden_matrices_is_adamw_and_loses_what_only_muon_has():
    settled = strategies.for_model(TrainConfig(strategy="serial"), 128, frozenset(), 1)
    assert (settled.optimizer, settled.lr) == (optim.AdamW(beta1=0.9), 1e-3)
    config = TrainConfig(predict="last", nesterov=0.2, orthogonalization="ns5", eps=1e-6)
    settled = strategies.for_model(config, 128, frozenset(), 2)
    assert settled.optimizer == optim.AdamW(beta1=0.9, eps=1e-6)
    assert (settled.strategy, prediction_of(settled)) == (Hogwild(), "own")
    shared = replace(config, moments="shared")
    assert prediction_of(strategies.for_model(shared, 128, frozenset(), 2)) == "last"
    assert prediction_of(strategies.for_model(config, 128, HIDDEN, 2)) == "last"
    model = read({"model_type": "mad", "layers": ["slstm-v1"], "vocab_size": 32, "hidden_size": 16})
    hidden = families.hidden_matrices(model)
    assert hidden == frozenset()
    muon = strategies.build_optimizer(strategies.for_model(chosen("muon"), 16, hidden, 1), hidden)
    assert muon == AdamW(**MOMENTS)
    assert strategies.build_optimizer(chosen("adamw")) == AdamW(**MOMENTS)


OTHER = {
    "beta1": 0.5, "nesterov": 0.7, "orthogonalization": "ns5", "eps": 0.1,
    "rank": 2, "scale": 9.0, "moments": "shared", "beta2_half_life": 100,
    "every": 2, "device": "worker", **dict.fromkeys(FACTORS.values(), 3.0),
}  # fmt: skip
"""Another value of each number than its default; half of it where none stands here."""


@each_of(
    ("name", "number"),
    [(name, number) for name, one in OPTIMIZERS.known().items() for number in options(one)],
)
def test_every_hyperparameter_of_an_optimizer_changes_its_updates_or_its_state(name, number):
    """After a gradient of zeros, and with a long one, so that guards and limits act, too."""
    default = options(OPTIMIZERS.find(name))[number].default
    value = OTHER.get(number) or float(str(default)) / 2

    def twice(xs, scales, coefficients):
        return on_cpu(xs, [2 * scale for scale in scales], coefficients)

    def trained(**numbers):
        choice = replace(OPTIMIZERS.read(name), **numbers)
        config = TrainConfig(strategy="serial", optimizer=choice)
        rule = strategies.build_optimizer(config, HIDDEN, groups=GROUPS, tokens_per_step=10)
        polar = twice if choice.orthogonalizes_on_worker(on_gpu=False) else None
        flat = initial()
        of = replace(target(rule, flat, "matrix"), orthogonalize=polar)
        for step, scale in enumerate(np.float32([1.0, 0.0, 0.0, 1.0, 50.0, 1.0]), 1):
            grads = {name: scale * grad for name, grad in dense_gradients(step).items()}
            rule.step(of, grads, lr=0.1, step=step)
        return flat.tobytes(), rule.shared_segments

    assert trained(**{number: value}) != trained()


# -- learning rates by group, and which matrices are hidden
# --------------------------------------------


def test_every_parameter_of_a_model_has_one_group_or_is_a_hidden_matrix():
    for name in ("minute", "7to1-tiny", "mad-7to1"):
        model = load_architecture(name)
        parts = [*families.rate_groups(model).values(), families.hidden_matrices(model)]
        assert sorted(n for part in parts for n in part) == sorted(families.param_spec(model))


@each_of(
    ("model", "hidden", "others"),
    [
        ("tiny", {"mlstm_layer.q", "mlstm_layer.ogate_preact", "ffn.proj_down"}, {"igate_preact"}),
        ("7to1-tiny", {"xlstm.proj_up", "xlstm.proj_down"}, {"q_proj", "conv1d.conv", "igate"}),
        ("lfm2-tiny", {"in_proj", "w3"}, {"conv"}),
    ],
)
def test_hidden_matrices_are_those_inside_the_blocks_that_are_wide_both_ways(model, hidden, others):
    cfg = load_architecture(model)
    spec, names = families.param_spec(cfg), families.hidden_matrices(cfg)
    for name in names:
        assert len(spec[name].shape) == 2
        assert min(spec[name].shape) >= cfg.hidden_size / 2
    assert not names & {families.embedding(cfg), families.head(cfg)}
    endings = {name.removesuffix(".weight") for name in names}
    assert all(any(name.endswith(end) for name in endings) for end in hidden)
    assert not any(name.endswith(end) for name in endings for end in others)


def test_a_learning_rate_of_the_head_alone_is_refused_where_it_is_tied():
    tied = {"embedding": frozenset({"e"}), "head": frozenset()}
    with pytest.raises(ConfigError, match=r"head_lr is 2, .* embedding_lr moves both"):
        strategies.build_optimizer(TrainConfig(strategy="serial", head_lr=2), HIDDEN, groups=tied)


def test_the_time_of_a_step_is_neither_that_of_its_write_nor_of_a_wait(monkeypatch):
    ns, entry = [1_000], Entry(1, np.zeros(ENTRY_BYTES, np.uint8))
    monkeypatch.setattr("mlxhog.optim.rule.monotonic_ns", lambda: ns[0])
    watch = StepWatch(entry)
    with watch.computing():
        ns[0] += 5
        entry.wait_ns += 2
        with watch.writing():
            ns[0] += 70
            entry.wait_ns += 60
        ns[0] += 4
    assert entry.optimizer_ns == 5 - 2 + 4


def test_an_optimizer_of_a_user_is_not_replaced_for_a_model_without_hidden_matrices():
    @dataclass(frozen=True, kw_only=True)
    class Own(Muon):
        name = "own"

    assert type(strategies.for_model(TrainConfig(optimizer=Own()), 128, HIDDEN, 1).optimizer) is Own
    with pytest.raises(ConfigError, match="adamw would take the place of your optimizer own; def"):
        strategies.for_model(TrainConfig(optimizer=Own()), 128, frozenset(), 1)
