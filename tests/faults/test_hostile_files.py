"""Files and values that break their reader are refused in words, soon, in little memory.

Damaged files of every kind are the soak of `tests/soak/damage.py`.
"""

import contextlib
import dataclasses

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from mlxhog.base import plain_json, plain_yaml
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import of_keywords, read_yaml, resolve
from mlxhog.errors import MAX_CHARACTERS, MAX_SHOWN, ConfigError, shown
from tests.faults.mutations import BOMB
from tests.pairs import each_of, max_examples


@each_of(
    ("text", "message"),
    [
        ("\nlr: !!int 3", "conf.yaml:2: not YAML: a tag, anchor or alias"),
        (BOMB, "conf.yaml:1: not YAML: a tag, anchor or alias"),
        (f"steps: {'9' * 5000}", "; wanted a whole number"),
        (f"lr: {'[' * 3000}", "nested more than 64 deep"),
        ("lr:\n" + "".join(f"{' ' * k}a:\n" for k in range(1, 300)), "nested more than 64 deep"),
        ("lr: {a: 1, a: 2}", "'a' is already in line 1"),
        ('lr: "\\UFFFFFFFF"', "not YAML"),
        ("lr: " + "x" * 100_000, "lr is 'xxx"),
    ],
)
def test_a_config_that_is_no_plain_yaml_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "conf.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, [read_yaml(path)])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


@each_of(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "nested"),
        ("9" * 5000, "5,000 digits"),
        ("NaN", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("[1e999]", "not JSON compliant"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('"\\ud800"', "half a character"),
    ],
)
def test_json_that_nothing_can_handle_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        plain_json.loads(text)


def test_no_message_is_longer_than_a_screen_and_its_way_out_stays():
    error = ConfigError(f"lr is {'x' * 10**6}; wanted a number")
    assert len(str(error)) < MAX_CHARACTERS + 100
    assert str(error).startswith("lr is xxx")
    assert str(error).endswith("x; wanted a number")
    assert "996,0" in str(error)


def test_a_value_is_shown_shortened_whatever_it_is():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**6000, "x" * 10**6, ["x" * 1000] * 1000, {k: k for k in range(10**4)}):
        assert len(shown(value)) <= MAX_SHOWN
    assert shown("a\x1b[2J") == "'a\\x1b[2J'"


same_every_time = max_examples(100, suppress_health_check=list(HealthCheck))
numbers = st.one_of(
    st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.booleans(), st.none()
)
words = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"-?[0-9_]{1,30}(\.[0-9]*)?([eE][+-]?[0-9]{1,4})?[kmgbsdh]?", fullmatch=True),
    st.sampled_from(["nan", "inf", "off", "none", "auto", "1e999", "10m", "9" * 5000, "h4", "x:1"]),
)
values = st.recursive(
    st.one_of(numbers, words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(words, numbers), inner, max_size=3)
    ),
    max_leaves=6,
)
OPTIONS = sorted(options(TrainConfig)) + ["eval_evry", ""]


VALID = ({"steps": 3, "lr": 0.25}, {"model": "tiny", "set": "hidden_size=32"}, {"time": "2m"})


@same_every_time
@given(st.dictionaries(st.sampled_from(OPTIONS), values, min_size=1, max_size=3))
@example(VALID[0])
@example(VALID[1])
@example(VALID[2])
def test_options_take_any_value_or_refuse_it(chosen):
    with contextlib.nullcontext() if chosen in VALID else contextlib.suppress(ConfigError):
        config = resolve(TrainConfig, [of_keywords("conf.yaml:1", chosen)])
        again = plain_yaml.entries(config.to_yaml()) or []
        assert resolve(TrainConfig, [{k: (v, "") for k, v, _ in again}]) == (
            dataclasses.replace(config, resume=None)
        )
