import pytest
import yaml

from mlxhog.errors import ConfigError
from mlxhog.mad.search import space as space_file
from mlxhog.mad.search.space import read_space, to_space
from mlxhog.mad.suites import suite
from mlxhog.models.mad.sequence import canonical
from tests.mad.search.spaces import candidates_of
from tests.pairs import each_of

BASE = {"depth": 4, "mixers": ["mlstm", "slstm"], "channels": ["swiglu"]}


MIXERS, ALL, CANON = "mlstm(h4) slstm(h4)", "mlstm(h4) slstm(h4) swiglu", "canon(kernel=2)"
SPREAD = [{"type": "mlstm", "heads": [1, 4], "conv": [0, 4]}, "slstm(h2)"]
DEFAULTS = {"defaults": {"mlstm": {"heads": 2}}, "mixers": ["mlstm", {"type": "mlstm", "heads": 8}]}


@each_of(
    ("keys", "depths", "block"),
    [
        ({}, (4,), [MIXERS, "swiglu"]),
        ({"depth": [4, 8]}, (4, 6, 8), [MIXERS, "swiglu"]),
        ({"depth": [3, 6]}, (3, 5), [MIXERS, "swiglu"]),
        ({"template": "free", "depth": [4, 7]}, (4, 5, 6, 7), [ALL]),
        ({"template": "free", "depth": [2, 4, 8]}, (2, 4, 8), [ALL]),
        ({"mixers": SPREAD}, (4,),
         ["mlstm(h1,conv=0) mlstm(h1) mlstm(h4,conv=0) mlstm(h4) slstm(h2)", "swiglu"]),
        (DEFAULTS, (4,), ["mlstm(h2) mlstm(h8)", "swiglu"]),
        ({"before": CANON, "depth": [4, 12]}, (4, 8, 12), [CANON, MIXERS, CANON, "swiglu"]),
        ({"before": "canon", "template": "free", "depth": [2, 5]}, (2, 4), ["canon", ALL]),
    ],
)  # fmt: skip
def test_a_space_has_depths_and_the_choices_of_the_part_that_repeats(keys, depths, block):
    space = to_space(BASE | keys)
    assert space.depths == depths
    assert [canonical(choices) for choices in space.block] == block


@each_of(
    ("keys", "message"),
    [
        ({"mixxers": ["mlstm"]}, "space has no 'mixxers'; did you mean 'mixers'"),
        ({"mixers": ["mlstn"]}, "no layer 'mlstn'; did you mean 'mlstm'"),
        ({"mixers": [{"type": "mlstm", "head": 2}]}, "'mlstm.head'; did you mean 'mlstm.heads'"),
        ({"mixers": ["swiglu"]}, "swiglu is a channel; list it under channels"),
        ({"mixers": ["mlstm", "mlstm(h4)"]}, r"'mlstm\(h4\)' twice"),
        ({"mixers": [{"type": "mlstm", "heads": []}]}, "mlstm.heads is an empty list"),
        ({"mixers": [{"heads": 2}]}, "is not a layer; write a name"),
        ({"mixers": "mlstm"}, "mixers is 'mlstm'; wanted a list"),
        ({"mixers": []}, "space has no mixers"),
        ({"channels": []}, "space has no channels"),
        ({"before": "canon", "depth": 3}, "depth is 3; with a layer before each other, .* even"),
        ({"before": "canon mlstm"}, "before is 'canon mlstm'; give one layer"),
        ({"template": "alternating"}, "did you mean 'alternate'"),
        ({"depth": None}, "'depth' is missing"),
        ({"depth": [8, 4]}, "rising numbers"),
        ({"depth": 1000}, "depth is 1000; give a whole number above 0, 256 at most"),
        ({"depth": "four"}, "depth is 'four'"),
        ({"max_count": {"slstn": 1}}, "max_count has no 'slstn'; did you mean 'slstm'"),
        ({"max_count": {"mlstm": 0}}, "max_count of mlstm is 0"),
        ({"budget": {"param": 7}}, "budget has no 'param'; did you mean 'params'"),
        ({"budget": {"params": "many"}}, "budget.params is 'many'"),
        ({"defaults": {"mlstn": {}}}, "defaults has no 'mlstn'; did you mean 'mlstm'"),
        ({"position": "rope"}, "position is 'rope'; choose one of none, learned, sincos"),
        ({"suite": "light"}, "did you mean 'lite'"),
        ({"dim": -1}, "dim is -1"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(keys, message):
    with pytest.raises(ConfigError, match=message):
        to_space(BASE | keys)


@each_of(
    ("text", "message"),
    [
        ("depth: 4", "no 'depth'"),
        ("space: 4", "space is 4; write keys below it"),
        ("space:", "space is missing"),
        ("- 1", r"the file is \[1\]"),
        ("space: {depth: [", "cannot read the space"),
        ("version: 2\nspace: {depth: 4}", "this program reads version 1"),
    ],
)
def test_a_file_that_is_no_space_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_space(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no space 'nowhere.yaml'"):
        read_space("nowhere.yaml")
    with pytest.raises(ConfigError, match="did you mean 'space-small'"):
        read_space("space-smal")
    with pytest.raises(ConfigError, match="cannot read the space .*directory"):
        read_space(tmp_path)


def test_the_example_in_the_documentation_is_a_space():
    lines = (space_file.__doc__ or "").splitlines()
    text = "\n".join(line for line in lines if line.startswith("    "))
    choices = candidates_of(to_space(yaml.safe_load(text)["space"]), suite("lite"))
    assert choices.count > 0
