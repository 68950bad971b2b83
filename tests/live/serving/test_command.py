"""`mlxhog serve`: its errors, its end, and its key."""

import json
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import httpx
import openai
import pytest

from mlxhog.base.http_server import listen
from tests.live.serving.servers import MLX, serving
from tests.processes import descriptors_limited

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_well_and_frees_its_port(folder, number):
    with serving("latest", MLX, cwd=folder) as server:
        health = server.health()
        assert (health["status"], health["model"]) == ("ok", server.model)
        assert (health["training"], health["version"], health["newest"]) == (False, 7, 7)
        code, err = server.end(number)
    assert (code, err.splitlines()[-1]) == (0, "ended")
    listen("127.0.0.1", server.port).close()


def test_with_a_key_only_those_who_have_it_are_answered(folder):
    key = {"MLXHOG_API_KEY": "opensesame"}
    with serving("latest", MLX, "--host", "0.0.0.0", cwd=folder, **key) as server:
        url, http = f"http://127.0.0.1:{server.port}", server.http
        body = {"model": server.model, "prompt": "ab"}
        for sent, status in (
            (None, 401), ("Bearer wrong", 401), ("Basic opensesame", 401),
            ("Bearer opensesame", 200),
        ):  # fmt: skip
            headers = {} if sent is None else {"Authorization": sent}
            answer = http.post(f"{url}/v1/completions", json=body, headers=headers)
            assert answer.status_code == status
            assert http.get(f"{url}/v1/models", headers=headers).status_code == status
        assert http.get(f"{url}/health").status_code == 200
        error = http.get(f"{url}/v1/models").json()["error"]
        assert error["code"] == "invalid_api_key"
        assert "opensesame" not in json.dumps(error)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()


def test_more_connections_than_files_can_be_open_are_one_line_and_no_end(folder):
    with descriptors_limited(80):
        process = subprocess.Popen(
            [sys.executable, "-m", "mlxhog", "serve", "latest", "--port=0", "--json", MLX],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    with process, ExitStack() as stack:
        stack.callback(process.kill)
        url = json.loads(process.stdout.readline())["url"]
        address = "127.0.0.1", int(url.partition("127.0.0.1:")[2].partition("/")[0])
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(100)
        ]
        assert "no more files can be opened, so connections wait" in process.stderr.readline()
        for client in clients:
            client.close()
        assert httpx.get(f"{url}/models", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "ended\n"
        assert process.wait(60) == 0
