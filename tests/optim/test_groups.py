"""Step sizes by group: each parameter moves as its rule moves it with the lr of its group."""

import numpy as np
import pytest

from mlxhog import optim
from mlxhog.config import optimizers
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizer import GROUPS
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.optim import AdamW, Adan, Apollo, Grouped, Muon, Soap
from mlxhog.optim.gradients import Rows
from tests.optim.small import BIAS, EMBEDDING, MATRIX, initial, parameter, target
from tests.pairs import each_of

HIDDEN = frozenset({"matrix"})
FACTORS = {"embedding": 12.0, "bias": 1.5}
GROUPED = {
    "embedding": frozenset({"embedding"}),
    "head": frozenset[str](),
    "scalar": frozenset({"bias"}),
}
LR = 0.01


def gradients(step):
    random = np.random.default_rng(step)
    rows = np.array([3, 7], np.int32)
    return {
        "matrix": random.standard_normal(MATRIX.shape, np.float32),
        "bias": random.standard_normal(BIAS.shape, np.float32),
        "embedding": Rows(rows, random.standard_normal((2, 5), np.float32)),
    }


def trained(rule, *, lr=LR):
    """The parameters after three steps."""
    flat = initial()
    of = target(rule, flat, "matrix", "embedding")
    for step in (1, 2, 3):
        grads = gradients(step)
        rule.step(of, grads, lr=lr, step=step, grad_scale=0.5)
    return flat


@each_of("native", [True, False])
@each_of("kind", [AdamW, Adan, Apollo, Muon, Soap])
def test_each_group_moves_as_the_whole_model_would_with_its_step_size(kind, native):
    own = {} if kind in (AdamW, Adan) else {"hidden": HIDDEN}
    if kind is Muon:
        own["shared"] = True
    rule = kind(native=native, **own)
    grouped = trained(Grouped(rule, FACTORS))
    for slot in (MATRIX, BIAS, EMBEDDING):
        alone = trained(rule, lr=LR * FACTORS.get(slot.name, 1.0))
        np.testing.assert_array_equal(parameter(grouped, slot), parameter(alone, slot))


def test_factors_of_one_change_nothing_and_none_is_built():
    config = TrainConfig(strategy="serial", optimizer="muon", embedding_lr=1, head_lr="auto")
    assert isinstance(optim.build(config, HIDDEN, groups=GROUPED), Muon)


@each_of(
    ("vocabulary", "workers", "strategy", "lr", "factors"),
    [
        (320, 1, "serial", 0.003, (1, 1, 1)),
        (320, 4, "sync", 0.006, (1, 1, 1)),
        (4096, 1, "serial", 0.0065, (12, 2.4, 1.5)),
        (4096, 2, "hogwild", 0.0065, (12, 2.4, 1.5)),
        (4096, 4, "sync", 0.013, (12, 2.4, 1.5)),
    ],
)
def test_open_step_sizes_follow_from_the_vocabulary(vocabulary, workers, strategy, lr, factors):
    config = TrainConfig(strategy=strategy)
    chosen = optim.for_model(config, 128, HIDDEN, workers, vocabulary=vocabulary)
    assert chosen.top_lr == pytest.approx(lr)
    assert tuple(getattr(chosen.optimizer, name) for name in GROUPS.values()) == factors


def test_a_given_factor_stays_and_a_tied_head_moves_with_the_smaller_one():
    config = TrainConfig(strategy="serial", embedding_lr=3)
    given = optim.for_model(config, 128, HIDDEN, 1, vocabulary=4096).optimizer
    assert isinstance(given, optimizers.Muon)
    assert (given.embedding_lr, given.head_lr) == (3, 2.4)
    tied = load_architecture("minute", "tie_word_embeddings=true")
    groups, hidden = families.rate_groups(tied), families.hidden_matrices(tied)
    config = TrainConfig(strategy="serial")
    chosen = optim.for_model(config, 128, hidden, 1, vocabulary=4096, groups=groups)
    assert isinstance(chosen.optimizer, optimizers.Muon)
    assert (chosen.optimizer.embedding_lr, chosen.optimizer.head_lr) == (2.4, 1)


def test_every_parameter_of_a_model_has_one_group_or_is_a_hidden_matrix():
    for name in ("minute", "7to1-tiny", "mad-7to1"):
        model = load_architecture(name)
        parts = [*families.rate_groups(model).values(), families.hidden_matrices(model)]
        assert sorted(n for part in parts for n in part) == sorted(families.param_spec(model))


def test_a_factor_of_a_group_that_the_model_lacks_is_refused():
    groups = families.rate_groups(load_architecture("minute", "tie_word_embeddings=true"))
    config = TrainConfig(strategy="serial", head_lr=2)
    with pytest.raises(
        ConfigError, match=r"head_lr is 2, and .*\(tied\).* embedding_lr moves both"
    ):
        optim.build(config, HIDDEN, groups=groups)


def test_an_optimizer_without_a_second_moment_has_no_factors():
    with pytest.raises(ConfigError, match="sgd has no head_lr; muon"):
        TrainConfig(optimizer="sgd", head_lr=2)
