"""Slow, broken and hostile clients get an error and harm nobody."""

import json

import openai
import pytest

from tests.live.serving.servers import (
    answered,
    connected,
    head,
    post,
    status_of,
)
from tests.threads import wait_until

COMPLETIONS = "/v1/completions"
MINUTES = 200_000
"""Tokens of an answer that no test waits for."""


@pytest.fixture(autouse=True)
def _harms_nobody(server, client):
    """After each of them another client is answered, and nothing of theirs is left."""
    yield
    answer = client.completions.create(model=server.model, prompt="ab", max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert server.process.poll() is None
    wait_until(lambda: server.health()["running"] + server.health()["waiting"] == 0)


def sent(server, *parts):
    with connected(server) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass  # the server has answered and closed
        return answered(connection)


def message(answer):
    """What the error says, in OpenAI's form."""
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return str(body["error"]["message"])


CLOSE = "Connection: close"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "the body is not JSON"),
        (b"", "the body is not JSON"),
        (b"[1]", "wanted a JSON object"),
        (b"\xff\xfe\x00", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"prompt": NaN}', "the body is not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "the body is not JSON"),
        (b'{"prompt": "\\ud800"}', "the body is not JSON"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "the body is not JSON"),
    ],
)
def test_a_body_that_is_not_json_is_refused(server, body, says):
    request = head(COMPLETIONS, CLOSE, f"Content-Length: {len(body)}") + body
    answer = sent(server, request)
    assert status_of(answer) == 400
    assert says in message(answer)


def test_a_huge_body_is_refused_by_its_length(server):
    request = head(COMPLETIONS, CLOSE, "Content-Length: 104857600")
    answer = sent(server, request, *[b"x" * (1 << 20)] * 100)
    assert status_of(answer) == 413
    assert "more than 1,000,000 bytes" in message(answer)


def test_a_huge_body_of_unknown_length_is_refused_where_the_limit_is(server):
    before = server.rss_bytes()
    request = head(COMPLETIONS, CLOSE, "Transfer-Encoding: chunked")
    piece = b"%x\r\n%s\r\n" % (1 << 16, b"x" * (1 << 16))
    answer = sent(server, request, *[piece] * 1600)
    assert status_of(answer) == 413
    assert server.rss_bytes() - before < 40 << 20


@pytest.mark.parametrize(
    "lines",
    [
        [f"X-{k}: {k}" for k in range(10_000)],
        ["a: b"] * 5000,
        ["X: " + "y" * 200_000],
    ],
    ids=["many", "short", "long"],
)
def test_ten_thousand_headers_are_refused(server, lines):
    answer = sent(server, head(COMPLETIONS, *lines, CLOSE))
    assert status_of(answer) in (400, 431)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", COMPLETIONS, 405), ("POST", "/v1/nothing", 404), ("GET", "/../etc/passwd", 404)],
)
def test_paths_that_are_not_there_name_those_that_are(server, method, path, status):
    answer = sent(server, head(path, CLOSE, "Content-Length: 0", method=method))
    assert status_of(answer) == status
    assert "this server has /, /v1/completions" in message(answer)


def long_stream(server, **how):
    """A request for the likeliest letters, among which no end of a document ever is."""
    fields = {"model": server.model, "prompt": "ab", "max_tokens": MINUTES, "stream": True}
    fields |= {"temperature": 0} | how
    return post(COMPLETIONS, json.dumps(fields).encode())


def test_a_client_that_leaves_in_mid_stream_cancels_its_answer(server):
    with connected(server) as connection:
        connection.sendall(long_stream(server, n=4))
        assert b"data:" in connection.recv(65536) + connection.recv(65536)
        assert server.health()["running"] == 4
    wait_until(lambda: server.health()["running"] == 0)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_cancels_it(server):
    with connected(server) as connection:
        connection.sendall(long_stream(server, stream=False))
        wait_until(lambda: server.health()["running"] == 1)
    wait_until(lambda: server.health()["running"] == 0)


def test_a_client_that_does_not_read_holds_nobody_up(server, client):
    with connected(server) as connection:
        connection.sendall(long_stream(server, n=7))
        wait_until(lambda: server.health()["running"] == 7)
        for _ in range(3):
            answer = client.completions.create(model=server.model, prompt="ab", max_tokens=50)
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 50


def test_beyond_the_queue_clients_are_told_to_retry(server, client):
    with connected(server) as first, connected(server) as second:
        first.sendall(long_stream(server, n=8))
        second.sendall(long_stream(server, n=4))
        wait_until(lambda: server.health()["waiting"] == 4)
        with pytest.raises(openai.RateLimitError, match="12 answers are running or wait") as raised:
            client.completions.create(model=server.model, prompt="ab")
        assert int(raised.value.response.headers["retry-after"]) > 0
    # The server is full until it has seen that both clients have left.
    wait_until(lambda: server.health()["running"] + server.health()["waiting"] == 0)
