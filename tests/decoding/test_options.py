"""Options of an answer: one set of limits for the command, Python and clients of a server."""

import json

import pytest

from mlxhog import load
from mlxhog.cli import main
from mlxhog.errors import ConfigError
from mlxhog.live.serving.requests import RefusedRequest, completion
from tests.pairs import each_of
from tests.saved import saved_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with load(saved_run(tmp_path_factory.mktemp("runs")).directory, backend="mlx") as result:
        yield result


def sampling_of(**fields):
    """What a client's request is understood as; OpenAI's clients have another name for one."""
    if "max_new_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_new_tokens")
    return completion(json.dumps({"model": "m", "prompt": "a", **fields}).encode(), model="m")


@each_of(
    ("name", "value", "problem"),
    [
        ("max_new_tokens", -1, "is -1; wanted a whole number at least 1"),
        ("max_new_tokens", 1.5, "is 1.5; wanted a whole number at least 1"),
        ("temperature", 1e300, "is 1e+300; wanted a number at least 0 and at most 100"),
        ("top_p", -0.1, "is -0.1; wanted a number at least 0 and at most 1"),
        ("repetition_penalty", 1e-39, "is 1e-39; wanted a number at least 0.01 and at most 1000"),
        ("seed", 2**63, f"is {2**63}; wanted a whole number at least 0 and at most {2**63 - 1}"),
        (
            "stop",
            ["a", ""],
            "is ['a', '']; wanted a text, or a list of texts: at most 8, each of 1 ",
        ),
        ("stop", ["a"] * 9, "is ['a', 'a', "),
        ("stop", ["a" * 101], "is ['aaa"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_it_as_the_user_wrote_it(
    model, capsys, name, value, problem
):
    flag = f"--{name.replace('_', '-')}"
    values = value if isinstance(value, list) else [value]
    assert main(["generate", "nothing", *(f"{flag}={one}" for one in values)]) == 2
    written = problem if name == "stop" else problem.replace(str(value), f"'{value}'", 1)
    assert f"{flag} {written}" in capsys.readouterr().err
    with pytest.raises(ConfigError) as by_keyword:
        model.generate("a", **{name: value})
    assert str(by_keyword.value).startswith(f"generate(): {name} {problem}")
    with pytest.raises(RefusedRequest) as by_client:
        sampling_of(**{name: value})
    theirs = "max_tokens" if name == "max_new_tokens" else name
    assert by_client.value.detail.startswith(f"{theirs} {problem}")
