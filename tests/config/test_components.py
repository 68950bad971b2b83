"""What can be chosen by name: how it is text, and which choice several sources come to."""

import pickle
from dataclasses import dataclass, replace

import pytest

from mlxhog.config.components import RUN_REGISTRIES, SCHEDULES, STRATEGIES, UnknownComponent
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import option, options
from mlxhog.config.sources import by_flat_names, read_yaml, resolve
from mlxhog.errors import ConfigError
from mlxhog.optim import AdamW
from mlxhog.optim.schedules import WSD, Backoff, Constant
from mlxhog.strategies import SSP, Hogwild
from tests.pairs import each_of


def given(text="", folder=None, **flags):
    """The configuration of a YAML text and of flags."""
    layers = [{name: (v, "--" + name.replace("_", "-")) for name, v in flags.items()}]
    if text:
        (folder / "0.yaml").write_text(text)
        layers.insert(0, read_yaml(folder / "0.yaml"))
    return resolve(TrainConfig, layers)


@each_of(
    ("text", "choice"),
    [
        ("wsd", WSD()),
        (" backoff ( beta = 0.5, steps=1k ) ", Backoff(beta=0.5, steps=1000)),
        ("backoff(backoff_beta=0.5)", Backoff(beta=0.5)),
        ({"name": "backoff", "epochs": "off"}, Backoff()),
        (Constant(warmup=0.0), Constant(warmup=0.0)),
        ("bakoff", "no schedule 'bakoff'; did you mean 'backoff'\\?"),
        ("wsd(beta=1)", "wsd has no beta; backoff has"),
        ("backoff(bta=1)", "backoff has no bta; did you mean 'beta'"),
        ("backoff(beta=2)", "backoff: beta is '2'; wanted a number above 0 and below 1"),
        ("backoff(0.5)", "'0.5' has no value; write name=value"),
        ("backoff(beta=0.5", "wanted a name, a name with hyperparameters such as"),
        ("backoff(steps=5, epochs=2)", "takes the place of .*; keep one"),
        ({"beta": 0.5}, "wanted a name, a name with hyperparameters"),
    ],
)
def test_a_component_is_read_from_text_a_mapping_or_itself_and_reads_back_its_text(text, choice):
    if isinstance(choice, str):
        with pytest.raises(ConfigError, match=choice):
            SCHEDULES.read(text)
        return
    for form in (text, str(choice), choice.to_dict()):
        assert SCHEDULES.read(form) == choice
    assert pickle.loads(pickle.dumps(choice)) == choice


WEAK = "schedule: {name: backoff, steps: 7}\n"
FLAT = "schedule: backoff\nbackoff_steps: 7\n"


@each_of(
    ("text", "flags", "choice"),
    [
        ("", {"schedule": "backoff", "backoff_beta": 0.5}, Backoff(beta=0.5)),
        ("backoff_beta: 0.5\n", {"schedule": "backoff"}, Backoff(beta=0.5)),
        (WEAK, {"backoff_beta": 0.5}, Backoff(steps=7, beta=0.5)),
        (WEAK, {"schedule": "backoff(beta=0.5)"}, Backoff(steps=7, beta=0.5)),
        (WEAK, {"schedule": "backoff(steps=8)"}, Backoff(steps=8)),
        (WEAK, {"schedule": "wsd"}, WSD()),
        (FLAT, {"backoff_steps": 8}, Backoff(steps=8)),
        ("", {"backoff_beta": 0.5}, "^--backoff-beta: cosine has no backoff_beta; backoff"),
        ("warmup: 0.5\n", {"schedule": "backoff"},
         r"0.yaml:1: warmup: backoff has no warmup; cosine,"),
        ("", {"schedule": "bakoff"}, "^--schedule: no schedule 'bakoff'"),
    ],
)  # fmt: skip
def test_a_later_source_changes_hyperparameters_or_the_component(tmp_path, text, flags, choice):
    if not isinstance(choice, str):
        assert given(text, tmp_path, **flags).schedule == choice
        return
    with pytest.raises(ConfigError, match=choice) as caught:
        given(text, tmp_path, **flags)
    cause = caught.value.__cause__  # a file of the user's own may mend it
    assert isinstance(cause, UnknownComponent) == (flags.get("schedule") == "bakoff")


def test_a_stored_component_is_its_name_with_its_hyperparameters_by_flat_names():
    text = {"name": "backoff", "steps": 7, "beta": 0.3}
    assert by_flat_names({"schedule": (text, "a:1"), "lr": (0.1, "a:2")}) == {
        "schedule": ("backoff", "a:1"), "backoff_steps": (7, "a:1"), "backoff_beta": (0.3, "a:1"),
        "lr": (0.1, "a:2"),
    }  # fmt: skip
    config = TrainConfig(strategy="ssp", slack=2, staleness_lr="exp")
    slack = {"slack": 5}
    assert replace(config, **slack).strategy == SSP(slack=5, staleness_lr="exp")
    assert replace(config, strategy=Hogwild()).strategy == Hogwild()
    assert replace(config, strategy=None).strategy is None
    with pytest.raises(ConfigError, match="no option 'bakcoff_steps'; did you mean"):
        TrainConfig(**{"bakcoff_steps": 3})


def test_no_flat_name_stands_for_two_things():
    own = [word for one in options(TrainConfig).values() for word in (one.name, *one.aliases)]
    flat = [name for kind in RUN_REGISTRIES for name in kind.hyperparameters()]
    assert len(own + flat) == len({*own, *flat})


def legal(number):
    """A value of a number that is not its default."""
    if number.choices:
        return next(word for word in number.choices if word != number.default)
    if number.type is bool:
        return not number.default
    return {int: 7, float: 0.25}.get(number.type, number.default)


@each_of("kind", RUN_REGISTRIES, ids=lambda kind: kind.title)
def test_a_hyperparameter_is_refused_beside_every_component_that_lacks_it(kind):
    for choice in kind.known().values():
        assert choice.about
        assert all(spec.help for spec in options(choice).values())
        for flat, number in kind.hyperparameters().items():
            if choice not in number.owners:
                owners = ", ".join(owner.name for owner in number.owners)
                message = f"{choice.name} has no {flat}; {owners} ha(s|ve)$"
                with pytest.raises(ConfigError, match=message):
                    TrainConfig(**{kind.title: choice.name, flat: legal(number)})


@each_of(
    ("base", "name", "method"),
    [(Hogwild, "strategy", "run_constraints"), (AdamW, "optimizer", "constraints"),
     (WSD, "schedule", "run_constraints")],
)  # fmt: skip
def test_a_misspelt_name_in_a_constraint_of_a_user_s_component_is_an_error(base, name, method):
    def misspelt(self, *config):
        return (((*config, self)[0].batch_sise == 1, "batch_size", "leave it out"),)

    own = dataclass(frozen=True, kw_only=True)(type("Own", (base,), {method: misspelt}))
    with pytest.raises(ConfigError, match=f"{method} of {own.name}: .*no attribute 'batch_sise'"):
        TrainConfig(**{name: own()})


def test_an_option_that_requires_a_misspelt_one_is_an_error(monkeypatch):
    monkeypatch.setattr(STRATEGIES, "_by_name", dict(STRATEGIES.known()))

    @STRATEGIES.register
    @dataclass(frozen=True, kw_only=True)
    class Own(Hogwild):
        name = "own"
        depth: int = option(3, "", requires={"bloks": ("disjoint",)})

    with pytest.raises(ConfigError, match="depth requires 'bloks'.* did you mean 'blocks'"):
        TrainConfig(strategy="own")


def test_a_broken_constraint_is_said_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(strategy="sim", cluster="10.0.0.1:8600")
    assert str(caught.value).count("cluster: adds to parameters") == 1
