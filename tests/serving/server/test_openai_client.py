"""The package `openai`, unchanged, against a real server."""

import math

import numpy as np
import openai
import pytest

from mlxhog import load
from tests.cli.command import told

LETTERS = set("abcdefghi\n")


def ask(client, server, prompt="ab", **how):
    return client.completions.create(model=server.model, prompt=prompt, **({"seed": 1} | how))


def say(client, server, text="ab", **how):
    message = {"role": "user", "content": text}
    return client.chat.completions.create(
        model=server.model, messages=[message], **({"seed": 1} | how)
    )


def test_the_list_of_models_has_the_run(client, server):
    (model,) = client.models.list().data
    assert model.id == server.model
    assert client.models.retrieve(server.model) == model
    with pytest.raises(openai.NotFoundError, match="this server has"):
        client.models.retrieve("gpt-4")


def test_a_completion_is_what_generate_writes_with_the_same_seed(client, server, folder):
    answer = ask(client, server, max_tokens=40, temperature=0.8)
    with load("latest", runs_dir=folder / "runs", backend="torch:cpu") as model:
        expected = model.generate("ab", temperature=0.8, seed=1, max_new_tokens=40)
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 40)


def test_a_stream_brings_the_same_texts_usage_and_weights(client, server):
    """Of several prompts and answers, in their order."""
    how = {"prompt": ["ab", "hi"], "n": 2, "max_tokens": 12, "echo": True}
    whole = ask(client, server, **how)
    texts = [choice.text for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [text[:2] for text in texts] == ["ab", "ab", "hi", "hi"]
    assert texts[0] != texts[1]
    assert whole.usage.prompt_tokens == 4
    chunks = list(ask(client, server, **how, stream=True, stream_options={"include_usage": True}))
    streamed = ["", "", "", ""]
    for chunk in chunks[:-1]:
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == "length"
    for last in (whole, chunks[-2]):
        weights = last.model_extra["mlxhog"]
        assert last.system_fingerprint == "v7"
        assert (weights["version_first"], weights["version_last"]) == (7, 7)
        assert weights["age_s"] >= 0
        assert weights["consistent"] is True


def test_a_chat_answers_as_the_assistant_whole_and_as_a_stream(client, server):
    answer = say(client, server, max_completion_tokens=30, stop="ab")
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert set(message.content) <= LETTERS
    assert "ab" not in message.content
    assert not message.content.startswith("\n")
    chunks = list(say(client, server, max_completion_tokens=30, stop="ab", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == message.content
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_a_chat_s_scores_are_those_of_its_text_whole_and_as_a_stream(client, server):
    how = {"max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    whole = say(client, server, **how).choices[0].logprobs.content
    chunks = list(say(client, server, **how, stream=True))
    parts = [c.choices[0].logprobs.content for c in chunks if c.choices[0].logprobs]
    assert sum(parts, []) == whole
    assert [bytes(one.bytes).decode() for one in whole] == [one.token for one in whole]
    assert all(one.logprob == one.top_logprobs[0].logprob for one in whole)


def test_scores_of_an_answer_are_token_by_token_those_of_the_model(client, server, folder, capsys):
    """Whatever the sampling; and `eval` has their sum."""
    how = {"max_tokens": 9, "temperature": 0.5, "extra_body": {"repetition_penalty": 1.5}}
    chat = say(client, server, **how, logprobs=True, top_logprobs=3).choices[0]
    plain = ask(client, server, **how, logprobs=3).choices[0]
    chosen = [(one.token, one.logprob) for one in chat.logprobs.content]
    with load("latest", runs_dir=folder / "runs", backend="torch:cpu") as model:
        for prompt, pairs in (
            ("User: ab\nAssistant:", chosen),
            ("ab", zip(plain.logprobs.tokens, plain.logprobs.token_logprobs, strict=True)),
        ):
            tokens, scores = zip(*pairs, strict=True)
            text = (prompt + "".join(tokens)).encode()
            logits = model.logits([model.tokenizer.bos, *model.tokenizer.encode(text)])
            rows = logits[:-1].astype("float64")
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
            own = rows[range(len(text)), [*text]][len(prompt) :]
            assert scores == pytest.approx(own, abs=1e-4)
    whole = ask(client, server, "abc\nhi", max_tokens=0, echo=True, logprobs=1).choices[0].logprobs
    (folder / "text.txt").write_text("abc\nhi")
    words = ("--data", folder / "text.txt", "--runs-dir", folder / "runs")
    nats = told(capsys, "eval", "latest", *words)["nats"]
    assert nats == pytest.approx(-sum(whole.token_logprobs), rel=1e-4)
    note = ask(client, server, **how | {"extra_body": {"do_sample": False}}).model_extra["mlxhog"]
    assert "without the temperature" in note["note"]


def test_a_token_s_offset_is_the_number_of_characters_before_it(client, server):
    """Also in a stream, and where a character has several tokens, or a token no text."""
    ids = [*"é x☃".encode(), 256, *b"a"]
    offsets = [0, 0, 1, 2, 3, 3, 3, 4, 4]
    how = {"prompt": [ids], "echo": True, "max_tokens": 2, "temperature": 0, "logprobs": 0}
    whole = ask(client, server, **how).choices[0]
    assert whole.logprobs.text_offset == [*offsets, 5, 6]
    assert whole.text[4] == "a"
    chunks = [chunk.choices[0].logprobs for chunk in ask(client, server, **how, stream=True)]
    assert sum((one.text_offset for one in chunks if one), []) == [*offsets, 5, 6]


@pytest.mark.parametrize("length", [-1, 10**9])
def test_a_length_without_or_above_the_limit_is_cut_to_it(client, server, length):
    assert ask(client, server, "a", max_tokens=length, stop="b").choices[0].finish_reason == "stop"


def test_a_harness_scores_a_text_with_echo_and_logprobs(client, server, folder):
    how = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = ask(client, server, [[97, 98, 99], [104, 105]], **how)
    with load("latest", runs_dir=folder / "runs", backend="torch:cpu") as model:
        expected = -model.score("abc") * 3 * math.log(2)
    first, second = (choice.logprobs for choice in answer.choices)
    assert (first.tokens[:3], second.tokens[:2]) == (["a", "b", "c"], ["h", "i"])
    assert (len(first.tokens), len(second.tokens)) == (4, 3)  # with the token of the answer
    assert sum(first.token_logprobs[:3]) == pytest.approx(expected, rel=1e-4)
    assert first.token_logprobs[3] == max(first.top_logprobs[3].values())  # it is the likeliest
    assert first.text_offset == [0, 1, 2, 3]
    read = ask(client, server, "abc", **how | {"max_tokens": 0})
    assert (read.choices[0].text, read.choices[0].finish_reason) == ("abc", "length")
    assert read.choices[0].logprobs.token_logprobs == first.token_logprobs[:3]
    assert read.usage.completion_tokens == 0
    assert ask(client, server, "abc", max_tokens=0).choices[0].text == ""
