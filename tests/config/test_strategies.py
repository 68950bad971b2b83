"""What a strategy owns, and what it is: no number stands beside a class that has no use for it."""

from dataclasses import replace

import pytest

from mlxhog.config.choices import KINDS
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.strategies import SSP, Hogwild
from mlxhog.errors import ConfigError

PAIRS = [
    (kind, choice, flat)
    for kind in KINDS
    for choice in kind.known().values()
    for flat, number in kind.numbers().items()
    if choice not in number.owners
]


def test_every_number_is_refused_beside_every_choice_without_it_and_its_owners_are_named():
    assert len(PAIRS) > 100
    for kind, choice, flat in PAIRS:
        number = kind.numbers()[flat]
        given = {kind.title: choice.name, flat: legal(number.option)}
        owners = ", ".join(owner.name for owner in number.owners)
        with pytest.raises(ConfigError, match=f"{choice.name} has no {flat}; {owners} ha(s|ve)$"):
            TrainConfig(**given)


def legal(number):
    """A value of a number that is not its default."""
    if number.choices:
        return next(word for word in number.choices if word != number.default)
    if number.type is bool:
        return not number.default
    return {int: 7, float: 0.25}.get(number.type, number.default)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_every_number_says_what_it_is_and_every_choice_what_it_does(kind):
    for choice in kind.known().values():
        assert choice.about
        assert all(spec.help for spec in options(choice).values())


def test_another_strategy_begins_with_its_defaults():
    config = TrainConfig(strategy="ssp", slack=2, staleness_lr="exp")
    assert replace(config, strategy=Hogwild()).strategy == Hogwild()
    more = {"slack": 5}
    assert replace(config, **more).strategy == SSP(slack=5, staleness_lr="exp")
    assert replace(config, strategy=None).strategy is None


def test_numbers_of_one_strategy_that_go_nowhere_are_refused():
    for wrong in (
        "hogwild(rotate_every=5)", "hogwild(shares=speed)", "hogwild(error_feedback=false)",
        "hogwild(async_after=0.1, blocks=disjoint)", "local_sgd(clients=2)",
        "sync(shares=speed, backup_workers=1)",
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            TrainConfig(strategy=wrong)
