"""What can be chosen by name: how it is spelt, and which choice several sources come to."""

import pickle
from dataclasses import replace

import pytest

from mlxhog.config.choices import KINDS, SCHEDULES, UnknownChoice
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.schedules import WSD, Backoff, Constant, Cosine
from mlxhog.config.sources import by_flat_names, read_yaml, resolve
from mlxhog.errors import ConfigError
from mlxhog.optim import Muon
from mlxhog.strategies import SSP, Hogwild


def given(*layers, folder=None, **flags):
    """The configuration of YAML texts, the weakest first, and of flags."""
    sources = []
    for number, text in enumerate(layers):
        assert folder is not None
        file = folder / f"{number}.yaml"
        file.write_text(text)
        sources.append(read_yaml(file))
    on_line = {name: (v, "--" + name.replace("_", "-")) for name, v in flags.items()}
    return resolve(TrainConfig, [*sources, on_line])


@pytest.mark.parametrize(
    ("spelt", "choice"),
    [
        ("wsd", WSD()),
        (" backoff ( beta = 0.5 ) ", Backoff(beta=0.5)),
        ("backoff(beta=0.5, steps=1k)", Backoff(beta=0.5, steps=1000)),
        ("backoff(backoff_beta=0.5)", Backoff(beta=0.5)),
        ({"name": "backoff", "epochs": "off"}, Backoff()),
        (Constant(warmup=0.0), Constant(warmup=0.0)),
    ],
)
def test_a_choice_is_read_from_text_a_mapping_or_itself_and_spelt_so_that_it_is_read_back(
    spelt, choice
):
    assert SCHEDULES.read(spelt) == choice
    assert SCHEDULES.read(str(choice)) == choice
    assert SCHEDULES.read(choice.to_dict()) == choice
    assert pickle.loads(pickle.dumps(choice)) == choice


@pytest.mark.parametrize(
    ("spelt", "message"),
    [
        ("bakoff", "no schedule 'bakoff'; did you mean 'backoff'\\?"),
        ("wsd(beta=1)", "wsd has no beta; backoff has"),
        ("backoff(bta=1)", "backoff has no bta; did you mean 'beta'"),
        ("backoff(beta=2)", "backoff: beta is '2'; wanted a number above 0 and below 1"),
        ("backoff(0.5)", "'0.5' has no value; write number=value"),
        ("backoff(beta=0.5, beta=0.6)", "has beta twice; keep one"),
        ("backoff(beta=0.5", "wanted a name, a name with numbers such as"),
        ({"beta": 0.5}, "give it a name"),
        (3, "wanted a name"),
    ],
)
def test_what_is_no_choice_is_refused_in_words(spelt, message):
    with pytest.raises(ConfigError, match=message):
        SCHEDULES.read(spelt)


def test_flat_numbers_go_to_the_choice_that_the_run_has(tmp_path):
    assert given(schedule="backoff", backoff_beta=0.5).schedule == Backoff(beta=0.5)
    assert given(warmup=0.2).schedule == Cosine(warmup=0.2)
    text = "schedule: {name: backoff, steps: 7, beta: 0.3}\n"
    assert given(text, folder=tmp_path, backoff_beta=0.5).schedule == Backoff(steps=7, beta=0.5)
    assert given("backoff_beta: 0.5\n", folder=tmp_path, schedule="backoff").schedule == Backoff(
        beta=0.5
    )


def test_a_stored_choice_is_its_name_with_its_numbers_by_flat_names():
    spelt = {"name": "backoff", "steps": 7, "beta": 0.3}
    flat = by_flat_names({"schedule": (spelt, "a:1"), "lr": (0.1, "a:2")})
    assert flat == {
        "schedule": ("backoff", "a:1"), "backoff_steps": (7, "a:1"), "backoff_beta": (0.3, "a:1"),
        "lr": (0.1, "a:2"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "numbers"),
    [({}, (0.9, 0.1)), ({"averaged": 2}, (0.75, 0.1)), ({"ahead": 4}, (0.95, 0.15))],
)
def test_open_numbers_of_muon_follow_from_its_workers(workers, numbers):
    chosen = Muon().fitted(hidden=True, **workers)
    assert (chosen.beta1, chosen.nesterov) == numbers
    assert Muon(beta1=0.5, nesterov=0.2).fitted(hidden=True, **workers).beta1 == 0.5


def test_a_stronger_source_changes_numbers_of_the_same_choice_and_begins_another_anew(tmp_path):
    weak = "schedule: backoff(steps=7)\n"
    assert given(weak, folder=tmp_path, schedule="backoff(beta=0.5)").schedule == Backoff(
        steps=7, beta=0.5
    )
    assert given(weak, folder=tmp_path, schedule="backoff(steps=8)").schedule == Backoff(steps=8)
    assert given(weak, folder=tmp_path, schedule="wsd").schedule == WSD()
    flat = "schedule: backoff\nbackoff_steps: 7\n"
    assert given(flat, folder=tmp_path, schedule="wsd").schedule == WSD()
    assert given(flat, folder=tmp_path, schedule="backoff(steps=8)").schedule == Backoff(steps=8)


def test_every_source_is_named_where_its_number_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="^--backoff-beta: cosine has no backoff_beta; backoff"):
        given(backoff_beta=0.5)
    with pytest.raises(ConfigError, match="^--backoff-beta is 2; wanted a number above 0"):
        given(schedule="backoff", backoff_beta=2)
    with pytest.raises(ConfigError, match=r"0.yaml:1: warmup: backoff has no warmup; cosine,"):
        given("warmup: 0.5\n", folder=tmp_path, schedule="backoff")
    with pytest.raises(ConfigError, match="^--schedule: no schedule 'bakoff'") as caught:
        given(schedule="bakoff")
    cause = caught.value.__cause__  # a file of the user's own may mend it
    assert isinstance(cause, UnknownChoice)
    assert cause.name == "bakoff"


def test_programs_may_give_flat_numbers_too():
    config = TrainConfig(schedule="backoff", backoff_steps=9)
    assert config.schedule == Backoff(steps=9)
    changed = {"backoff_beta": 0.5}
    assert replace(config, **changed).schedule == Backoff(steps=9, beta=0.5)
    assert replace(config, schedule=WSD()).schedule == WSD()
    with pytest.raises(ConfigError, match="no option 'bakcoff_steps'; did you mean"):
        TrainConfig(**{"bakcoff_steps": 3})


def test_no_flat_name_stands_for_two_things():
    own = [word for one in options(TrainConfig).values() for word in (one.name, *one.aliases)]
    flat = [name for kind in KINDS for name in kind.numbers()]
    assert len(own + flat) == len({*own, *flat})


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "adamw(beta2=0.9, beta2_half_life=2)"},
        {"schedule": "backoff(steps=5, epochs=2)"},
        {"schedule": "backoff", "backoff_steps": 5, "backoff_epochs": 2},
    ],
)
def test_a_number_is_refused_beside_the_one_that_takes_its_place(values):
    with pytest.raises(ConfigError, match="takes the place of .*; keep one"):
        given(**values)


# -- numbers and their owners ----------------------------------------------------------------

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
