"""Whatever value or text stands in a file, its reader returns or raises one of our errors."""

import contextlib
import dataclasses

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from mlxhog.base import plain_json, plain_yaml
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options
from mlxhog.config.sources import of_keywords, resolve
from mlxhog.errors import ConfigError
from mlxhog.models import families
from tests.faults.loaders import LARGE, MAD, V1
from tests.pairs import each_of, max_examples

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


@same_every_time
@given(st.dictionaries(st.sampled_from(OPTIONS), values, min_size=1, max_size=3))
def test_options_take_any_value_or_refuse_it(chosen):
    with contextlib.suppress(ConfigError):
        config = resolve(TrainConfig, [of_keywords("conf.yaml:1", chosen)])
        again = plain_yaml.entries(config.to_yaml()) or []
        assert resolve(TrainConfig, [{k: (v, "") for k, v, _ in again}]) == (
            dataclasses.replace(config, resume=None)
        )


def read_with(fields, name, value):
    """A model of which one value was changed."""
    spoilt = {**fields.get("model", fields), name: value}
    return families.read({**fields, "model": spoilt} if "model" in fields else spoilt)


SIZES = ("num_heads", "hidden_size", "num_hidden_layers")
NUMBERS = ("norm_eps", "qk_dim_factor", "gate_soft_cap", "ffn_proj_factor")
BEYOND = [
    *((LARGE, n, x) for n in SIZES for x in (9e15, 10**300, 2**40, "9e15", -1, 0, True)),
    *((LARGE, n, x) for n in NUMBERS for x in (float("nan"), float("inf"), 1e300, -1.0, "1e999")),
    (V1, "slstm_at", ["x"]), (V1, "slstm_at", [1e300]), (V1, "num_blocks", 9e15),
    (V1, "mlstm_block", {"mlstm": {"proj_factor": 1e308}}),
    (V1, "mlstm_block", {"mlstm": {"num_heads": 2**31 - 1}}),
    (V1, "slstm_block", {"slstm": {}, "feedforward": {"proj_factor": 1e29}}),
    *((MAD, "layers", x) for x in (
        f"mlstm*{'9' * 5000}", f"mlstm(h{'9' * 5000})", "(" * 3000, "mlstm(heads=9e15)",
        [{"type": "moe-swiglu", "experts": 2**31 - 1}], [{"type": "mlstm", 1: 2}],
        [{"repeat": 9e15, "layers": ["mlstm"]}], [[["mlstm"]]],
    )),
]  # fmt: skip


@each_of(("fields", "name", "value"), BEYOND)
def test_a_size_beyond_reason_and_a_number_that_is_none_are_refused_at_once(fields, name, value):
    with pytest.raises(ConfigError, match=name if fields is LARGE else None):
        read_with(fields, name, value)


@same_every_time
@given(st.one_of(st.text(), st.binary(), st.text("[]{}:,-&*!|>'\"\\# \n\ta1.%?=<~", max_size=60)))
def test_any_text_is_plain_yaml_or_json_or_is_none(text):
    if isinstance(text, str):
        for read in (plain_yaml.loads, plain_yaml.entries):
            with contextlib.suppress(plain_yaml.NotYaml):
                read(text)
    with contextlib.suppress(ValueError):
        value = plain_json.loads(text)
        assert plain_json.loads(plain_json.dumps(value)) == value
