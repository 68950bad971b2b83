"""Whatever value or text stands in a file, its reader returns or raises one of our errors."""

import contextlib
import dataclasses

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from mlxhog.base import plain_json, plain_yaml
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import of_keywords, resolve
from mlxhog.errors import ConfigError
from mlxhog.mad.search.space import to_space
from mlxhog.models import families
from mlxhog.models.mad.sequence import parse
from tests.faults.subjects import LARGE, MAD, V1
from tests.pairs import max_examples

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
LAYERS = st.from_regex(
    r"(mlstm|slstm|swiglu|[(]|[)]|\*[0-9]{1,3}|[(]h[0-9]+[)]| ){1,12}", fullmatch=True
)


@same_every_time
@given(st.dictionaries(st.sampled_from(OPTIONS), values, min_size=1, max_size=3))
def test_options_take_any_value_or_refuse_it(chosen):
    with contextlib.suppress(ConfigError):
        config = resolve(TrainConfig, [of_keywords("conf.yaml:1", chosen)])
        again = plain_yaml.entries(config.to_yaml()) or []
        assert resolve(TrainConfig, [{k: (v, "") for k, v, _ in again}]) == (
            dataclasses.replace(config, resume=None)
        )


@same_every_time
@given(st.sampled_from([LARGE, V1, MAD]), st.data(), values)
def test_a_model_takes_any_value_or_refuses_it(fields, data, value):
    inside = fields.get("model", fields)
    name = data.draw(st.sampled_from(sorted(inside)))
    spoilt = {**inside, name: value}
    with contextlib.suppress(ConfigError):
        model = families.read({**fields, "model": spoilt} if "model" in fields else spoilt)
        assert families.param_count(model) > 0


@same_every_time
@given(
    values, st.sampled_from(["depth", "mixers", "channels", "defaults", "budget", "start", "dim"])
)
def test_a_space_takes_any_value_or_refuses_it(value, name):
    with contextlib.suppress(ConfigError):
        to_space({"depth": 2, "mixers": ["mlstm"], "channels": ["swiglu"], name: value})


@same_every_time
@given(st.one_of(LAYERS, st.text(max_size=40)))
def test_a_line_of_layers_is_read_or_refused(line):
    with contextlib.suppress(ConfigError):
        assert parse(line)


@same_every_time
@given(st.one_of(st.text(), st.text("[]{}:,-&*!|>'\"\\# \n\ta1.%?=<~", max_size=60)))
def test_any_text_is_plain_yaml_or_is_none(text):
    for read in (plain_yaml.loads, plain_yaml.entries):
        with contextlib.suppress(plain_yaml.NotYaml):
            read(text)


@same_every_time
@given(st.one_of(st.text(), st.binary(), st.text('[]{}:,"\\u01de-.+ntrf', max_size=60)))
def test_any_text_is_plain_json_or_is_none(text):
    with contextlib.suppress(ValueError):
        value = plain_json.loads(text)
        assert plain_json.loads(plain_json.dumps(value)) == value
