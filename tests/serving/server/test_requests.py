"""Fields of requests: what they mean, and what is refused."""

import json
import sys

import pytest

from mlxhog.decoding.options import Sampling
from mlxhog.serving.server.requests import (
    CHAT_TOKENS,
    HARMLESS,
    IGNORED,
    RefusedRequest,
    chat,
    completion,
)
from tests.pairs import each_of


def asked(**fields):
    return completion(json.dumps({"model": "m", "prompt": "a"} | fields).encode(), model="m")


def talked(**fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]} | fields
    return chat(json.dumps(body).encode(), model="m")


def test_what_is_left_out_is_openai_s_default_and_a_chat_a_text_that_the_model_goes_on_with():
    one, other = asked(), talked(stop=["x"])
    assert (one.n, one.stream, one.echo) == (1, False, False)
    expected = Sampling(max_new_tokens=16, temperature=1.0, seed=one.sampling.seed)
    assert one.sampling == expected
    assert other.sampling.max_new_tokens == CHAT_TOKENS
    assert other.prompts == ("User: a\nAssistant:",)
    assert other.sampling.stop == ("\nSystem:", "\nUser:", "\nAssistant:", "\nTool:", "x")


def test_requests_of_other_clients_mean_here_what_they_mean_elsewhere():
    for prompt, prompts in (
        ("", ("",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3))),
    ):  # fmt: skip
        assert asked(prompt=prompt).prompts == prompts
    assert asked(top_p=0).sampling.top_p == 0
    assert asked(top_k=-1).sampling.top_k == 0
    assert asked(seed=-1).sampling.seed != asked(seed=-1).sampling.seed
    harness = asked(prompt=[[5, 6]], max_tokens=0, echo=True, logprobs=1, temperature=0, seed=7)
    assert (harness.writes, harness.echo, harness.logprobs) == (False, True, 1)
    assert asked(max_tokens=1, logprobs=0).writes
    assert (asked(logprobs=False).logprobs, asked(logprobs=0).logprobs) == (None, 0)


def test_fields_that_change_no_text_are_ignored_and_others_are_refused():
    for ask in (asked, talked):
        for name in IGNORED:
            ask(**{name: {"any": ["thing"]}})
        for name, values in {**HARMLESS, "tools": ([], None), "logit_bias": ({}, 0)}.items():
            for value in values:
                ask(**{name: value})
            is_flag = name == "add_generation_prompt" and ask is talked
            problem = (
                "wanted true or false" if is_flag else f"'{name}' is not supported here; leave"
            )
            with pytest.raises(RefusedRequest, match=problem):
                ask(**{name: "x" * 9})
        with pytest.raises(RefusedRequest, match="did you mean 'temperature'"):
            ask(temprature=0.5)
    talked(echo=False, logprobs=False)
    for name in ("prompt", "echo"):
        with pytest.raises(RefusedRequest, match=f"{name} is a field of /v1/completions"):
            talked(**{name: True})


@each_of(
    ("name", "value"),
    [
        ("max_tokens", True), ("max_tokens", 1.5), ("max_tokens", "9"), ("max_new_tokens", 5),
        ("logprobs", True), ("logprobs", 21), ("seed", -2), ("seed", 2**70), ("temperature", [1]),
        ("repetition_penalty", 1e-39), ("top_p", -0.1), ("n", 0), ("stream", "yes"),
        ("stream_options", []), ("stream_options", {"include_usage": 1}), ("session", "a"),
        ("stop", 5), ("stop", ["a", ""]), ("stop", ["a"] * 65), ("stop", ["a" * 101]),
        ("prompt", None), ("prompt", 5), ("prompt", [True]), ("prompt", ["a", 1]),
        ("modle", "m"), ("best_of", 2), ("do_sample", "no"), ("tfs", True), ("max_tokens", -2),
    ],
)  # fmt: skip
def test_every_wrong_field_is_named(name, value):
    with pytest.raises(RefusedRequest) as raised:
        asked(**{name: value})
    assert (raised.value.status_code, raised.value.param) == (400, name)


def test_samplers_of_other_servers_are_taken_where_they_change_nothing():
    neutral = {
        "presence_penalty": 0.0,
        "tfs": 1.0,
        "min_p": 0,
        "logit_bias": {},
        "n": 2,
        "best_of": 2,
    }
    off = {"mirostat": 0, "mirostat_tau": 5, "dry_base": 1.75, "xtc_threshold": 0.1}
    asked(**neutral, **off, stream_options={"include_usage": None}, stop="")
    assert asked(max_tokens=10**40).sampling.max_new_tokens == sys.maxsize
    for switch in ("mirostat", "dry_multiplier"):
        with pytest.raises(RefusedRequest, match="is not supported here"):
            asked(**off | {switch: 2})
    assert len(asked(stop=[str(k) for k in range(16)]).sampling.stop) == 16
    body = json.dumps({"prompt": "a"}).encode()
    assert completion(body, model="m").prompts == ("a",)


def test_do_sample_false_takes_the_likeliest_tokens_and_says_that_a_temperature_is_left_out():
    for ask in (asked, talked):
        greedy, plain = ask(do_sample=False, temperature=0.7), ask(do_sample=False)
        assert greedy.sampling.temperature == plain.sampling.temperature == 0
        assert ("without the temperature" in greedy.note, plain.note) == (True, "")
        sampled = ask(do_sample=True, temperature=0.7)
        assert (sampled.sampling.temperature, sampled.note) == (0.7, "")


def test_a_chat_has_scores_as_openai_s_and_goes_on_with_its_last_message():
    assert talked(logprobs=True).logprobs == 0
    assert talked(logprobs=True, top_logprobs=2).logprobs == 2
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "He "}]
    request = talked(messages=talk, continue_final_message=True, add_generation_prompt=False)
    assert (request.prompts, request.continues) == (("User: a\nAssistant: He ",), True)
    for fields, problem in (
        ({"top_logprobs": 2}, "needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21; wanted an integer, 0 to 20"),
        ({"logprobs": 2}, "logprobs is 2; wanted true or false"),
        ({"continue_final_message": True}, "the last, is not a text of the assistant"),
        ({"add_generation_prompt": False}, "one of add_generation_prompt"),
    ):
        with pytest.raises(RefusedRequest, match=problem):
            talked(**fields)
