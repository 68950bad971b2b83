"""Slow, broken and hostile clients get an error and harm nobody."""

import json
import subprocess

import openai
import pytest

from tests.pairs import each_of
from tests.serving.server.servers import answered, connected, head, post
from tests.threads import wait_until

COMPLETIONS = "/v1/completions"
CLOSE = "Connection: close"
MINUTES = 200_000
"""Tokens of an answer that no test waits for."""


@pytest.fixture(autouse=True)
def _harms_nobody(server, client):
    """After each of them another client is answered, and nothing of theirs is left."""
    yield
    answer = client.completions.create(model=server.model, prompt="ab", max_tokens=5)
    assert answer.usage.completion_tokens == 5
    assert server.process.poll() is None
    wait_until(lambda: server.health()["running"] + server.health()["waiting"] == 0)


def sent(server, *parts):
    """Send bytes; returns the status, and the message of an error in OpenAI's form."""
    with connected(server) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass  # the server has answered and closed
        status, answer = answered(connection)
    try:
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    except ValueError:  # uvicorn's own
        return status, ""
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["message"]


def body(text):
    return [head(COMPLETIONS, CLOSE, f"Content-Length: {len(text)}") + text]


NOT_JSON = (
    b"{", b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"prompt": NaN}',
    b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "\\ud800"}',
    b'{"max_tokens": ' + b"9" * 5000 + b"}",
)  # fmt: skip


@each_of(
    ("parts", "status", "says"),
    [
        *((body(text), 400, "the body is not JSON") for text in NOT_JSON),
        (body(b"[1]"), 400, "wanted a JSON object"),
        ([head(COMPLETIONS, *(f"X-{k}: {k}" for k in range(10_000)), CLOSE)], 400, ""),
        ([head(COMPLETIONS, "X: " + "y" * 200_000, CLOSE)], 400, ""),
        *(
            ([head(path, CLOSE, "Content-Length: 0", method=method)], status, "server has /, /v1/c")
            for method, path, status in (
                ("GET", COMPLETIONS, 405), ("POST", "/v1/nothing", 404),
                ("GET", "/../etc/passwd", 404),
            )
        ),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_no_request_of_this_server_is_refused(server, parts, status, says):
    answer = sent(server, *parts)
    assert answer[0] == status
    assert says in answer[1]


def test_a_huge_body_is_refused_by_its_length_or_where_the_limit_is(server):
    def rss_bytes():
        asked = ["ps", "-o", "rss=", "-p", str(server.process.pid)]
        return 1024 * int(subprocess.run(asked, capture_output=True, check=True).stdout)

    before = rss_bytes()
    piece = b"x" * (1 << 16)
    chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
    for line, part in (("Content-Length: 104857600", piece), ("Transfer-Encoding: chunked", chunk)):
        status, message = sent(server, head(COMPLETIONS, CLOSE, line), *[part] * 1600)
        assert status == 413
        assert "more than 1,000,000 bytes" in message
    assert rss_bytes() - before < 40 << 20


@each_of(
    ("prompt", "logprobs", "scores"),
    [
        ("ab" * 2500, 20, "105,000"),
        (["a" * 25_001] * 2, 1, "100,004"),
        ("a" * 100_001, 0, "100,001"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_prompt_has_scores_up_to_the_limit(server, client, prompt, logprobs, scores):
    fields = {"model": server.model, "echo": True, "max_tokens": 0, "logprobs": logprobs}
    with pytest.raises(openai.BadRequestError, match=f"is {scores} probabilities") as raised:
        client.completions.create(prompt=prompt, **fields)
    assert raised.value.param == "logprobs"
    assert "send fewer or shorter prompts, or a smaller logprobs" in raised.value.message


def long_answer(server, **how):
    """A request for the likeliest letters, among which no end of a document ever is."""
    fields = {"model": server.model, "prompt": "ab", "max_tokens": MINUTES, "stream": True}
    return post(COMPLETIONS, json.dumps(fields | {"temperature": 0} | how).encode())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_answers(server, stream):
    with connected(server) as connection:
        connection.sendall(long_answer(server, n=4, stream=stream))
        if stream:
            assert any(line.startswith(b"data:") for line in connection.makefile("rb"))
        wait_until(lambda: server.health()["running"] == 4)
    wait_until(lambda: server.health()["running"] == 0)


def test_a_client_that_does_not_read_holds_nobody_up(server, client):
    with connected(server) as connection:
        connection.sendall(long_answer(server, n=7))
        wait_until(lambda: server.health()["running"] == 7)
        for _ in range(3):
            answer = client.completions.create(model=server.model, prompt="ab", max_tokens=50)
            assert answer.usage.completion_tokens == 50


def test_beyond_the_queue_clients_are_told_to_retry(server, client):
    with connected(server) as first, connected(server) as second:
        first.sendall(long_answer(server, n=8))
        wait_until(lambda: server.health()["running"] == 8)
        second.sendall(long_answer(server, n=4))
        wait_until(lambda: server.health()["waiting"] == 4)
        with pytest.raises(openai.RateLimitError, match="12 answers are running or wait") as raised:
            client.completions.create(model=server.model, prompt="ab")
        assert int(raised.value.response.headers["retry-after"]) > 0
    # The server is full until it has seen that both clients have left.
    wait_until(lambda: server.health()["running"] + server.health()["waiting"] == 0)
