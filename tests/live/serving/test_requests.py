"""Fields of requests: what they mean, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxhog.live.serving.requests import (
    CHAT_TOKENS,
    ClientRequest,
    Refused,
    chat,
    chat_text,
    completion,
)
from tests.pairs import each_of


def asked(**fields: Any) -> ClientRequest:
    return completion(json.dumps({"model": "m", "prompt": "a"} | fields).encode(), model="m")


def talked(**fields: Any) -> ClientRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]} | fields
    return chat(json.dumps(body).encode(), model="m")


def test_what_is_left_out_is_openai_s_default() -> None:
    one = asked()
    assert (one.prompts, one.stop, one.stream, one.echo, one.session) == (
        ("a",),
        (),
        False,
        False,
        None,
    )
    numbers = one.sampling
    assert (numbers.max_tokens, numbers.temperature, numbers.top_p, numbers.n) == (16, 1.0, 1.0, 1)
    assert talked().sampling.max_tokens == CHAT_TOKENS


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    names = ("max_tokens", "temperature", "seed", "stop", "stream", "logprobs", "session", "echo")
    assert asked(**dict.fromkeys(names)) == asked()


@each_of(
    ("fields", "prompts"),
    [
        ({"prompt": "a"}, ("a",)),
        ({"prompt": ["a", "b"]}, ("a", "b")),
        ({"prompt": [1, 2]}, ((1, 2),)),
        ({"prompt": [[1], [2, 3]]}, ((1,), (2, 3))),
        ({"prompt": ""}, ("",)),
    ],
)
def test_a_prompt_is_a_text_or_ids_or_several(fields: Any, prompts: Any) -> None:
    assert asked(**fields).prompts == prompts


def test_fields_that_ask_for_nothing_are_taken() -> None:
    asked(logit_bias={}, presence_penalty=0, best_of=1, user="me", suffix="", frequency_penalty=0.0)
    talked(tools=[], tool_choice="auto", response_format={"type": "text"}, metadata={"a": "b"})


@each_of(
    ("fields", "param"),
    [
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_fields_that_would_change_the_answer_are_refused(fields: Any, param: str) -> None:
    with pytest.raises(Refused, match=f"{param} is not supported here") as raised:
        asked(**fields)
    assert raised.value.param == param


@each_of(
    "fields",
    [
        {"max_tokens": True},
        {"max_tokens": 1.5},
        {"max_tokens": "9"},
        {"temperature": [1]},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": 2},
        {"repetition_penalty": 1e-39},
        {"seed": -1},
        {"seed": 2**70},
        {"n": 0},
        {"top_k": -1},
        {"stream": "yes"},
        {"stream_options": []},
        {"stream_options": {"include_usage": 1}},
        {"stop": 5},
        {"stop": ["a"] * 9},
        {"stop": "a" * 101},
        {"session": "../../etc"},
        {"session": 5},
        {"session": "a", "n": 2},
        {"session": "a", "prompt": ["a", "b"]},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": [True]},
        {"prompt": ["a", 1]},
        {"prompt": [2**40]},
        {"model": None},
        {"modle": "m"},
    ],
)
def test_every_wrong_field_is_named(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused) as raised:
        asked(**fields)
    assert raised.value.status == 400
    assert raised.value.param in fields


@each_of(
    "messages",
    [
        None,
        [],
        "hello",
        [5],
        [{"role": "robot", "content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": ["user"], "content": "a"}],
    ],
)
def test_messages_that_make_no_sense_are_refused(messages: Any) -> None:
    with pytest.raises(Refused, match="messages|message 1"):
        talked(messages=messages)


def test_a_chat_becomes_a_text_that_the_model_goes_on_with() -> None:
    roles = ("system", "user", "assistant", "user")
    text = chat_text([(role, f" {k} ") for k, role in enumerate(roles)])
    assert text == "0\nUser: 1\nAssistant: 2\nUser: 3\nAssistant:"
    one = talked(stop=["x"])
    assert one.prompts == ("User: a\nAssistant:",)
    assert one.stop == ("\nUser:", "x")
    assert one.joint == "\n"


def test_the_newer_name_of_the_length_wins() -> None:
    assert talked(max_completion_tokens=5, max_tokens=9).sampling.max_tokens == 5
