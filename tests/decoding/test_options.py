"""Options of an answer: one set of limits for the command, Python and clients of a server."""

import json

import pytest

from mlxhog import load
from mlxhog.cli import main
from mlxhog.decoding.options import Sampling
from mlxhog.errors import ConfigError
from mlxhog.live.serving.requests import RefusedRequest, completion
from tests.pairs import each_of
from tests.saved import saved_run


@pytest.fixture
def saved(tmp_path):
    """A run with a checkpoint of a tiny model that has learnt nothing."""
    return saved_run(tmp_path / "runs").directory


@pytest.fixture
def model(saved):
    with load(saved, backend="mlx") as result:
        yield result


def field(name):
    """What OpenAI's clients call an option."""
    return "max_tokens" if name == "max_new_tokens" else name


def sampling_of(**fields):
    """What a client's request is understood as."""
    body = {"model": "m", "prompt": "a", **{field(name): value for name, value in fields.items()}}
    return completion(json.dumps(body).encode(), model="m").sampling


@each_of(
    ("name", "value", "wanted"),
    [
        ("max_new_tokens", -1, "a whole number at least 1"),
        ("max_new_tokens", 1.5, "a whole number at least 1"),
        ("temperature", 1e300, "a number at least 0 and at most 100"),
        ("top_p", -0.1, "a number at least 0 and at most 1"),
        ("repetition_penalty", 1e-39, "a number at least 0.01 and at most 1000"),
        ("seed", 2**63, f"a whole number at least 0 and at most {2**63 - 1}"),
    ],
)
def test_a_wrong_number_is_one_sentence_that_names_it_as_the_user_wrote_it(
    model, capsys, name, value, wanted
):
    flag = f"--{name.replace('_', '-')}"
    assert main(["generate", "nothing", f"{flag}={value}"]) == 2
    assert f"{flag} is '{value}'; wanted {wanted}\n" in capsys.readouterr().err
    with pytest.raises(ConfigError) as by_keyword:
        model.generate("a", **{name: value})
    assert str(by_keyword.value) == f"generate(): {name} is {value}; wanted {wanted}"
    with pytest.raises(RefusedRequest) as by_client:
        sampling_of(**{name: value})
    assert by_client.value.detail == f"{field(name)} is {value}; wanted {wanted}"
    with pytest.raises(ConfigError) as inside:
        Sampling(**{name: value})
    assert str(inside.value) == f"{name} is {value}; wanted {wanted}"


def test_the_largest_penalty_and_seed_are_the_same_for_the_command_python_and_clients(
    model, saved, capsys
):
    largest = {"repetition_penalty": 1000, "seed": 2**63 - 1, "max_new_tokens": 5}
    text = model.generate("a", **largest)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in largest.items()]
    assert main(["generate", str(saved), "--prompt=a", "--backend=mlx", "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == text
    assert sampling_of(temperature=0.8, **largest) == Sampling(**largest)


@each_of(
    ("stop", "problem"),
    [
        (["a", ""], "has an empty text, which would end every answer at once; leave it out"),
        (
            ["a"] * 9,
            "has 9 texts, the longest of 1 characters; wanted at most 8 of at most 100",
        ),
        (
            ["a" * 101],
            "has 1 texts, the longest of 101 characters; wanted at most 8 of at most 100",
        ),
    ],
)
def test_wrong_stop_strings_are_one_sentence_that_names_them_as_the_user_does(
    model, capsys, stop, problem
):
    assert main(["generate", "nothing", *(f"--stop={text}" for text in stop)]) == 2
    assert f"--stop {problem}" in capsys.readouterr().err
    with pytest.raises(ConfigError) as by_keyword:
        model.generate("a", stop=stop)
    assert str(by_keyword.value).startswith(f"generate(): stop {problem}")
    with pytest.raises(RefusedRequest) as by_client:
        sampling_of(stop=stop)
    assert by_client.value.detail.startswith(f"stop {problem}")
