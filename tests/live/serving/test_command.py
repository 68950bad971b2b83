"""`mlxhog serve`: its errors and its end."""

import json
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import httpx
import pytest

from mlxhog.base.http_server import listen
from tests.live.serving.servers import MLX, serving
from tests.processes import descriptors_limited

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server_well_and_frees_its_port(folder, number):
    with serving("latest", MLX, cwd=folder) as server:
        health = server.health()
        assert (health["status"], health["model"]) == ("ok", server.model)
        assert (health["training"], health["version"], health["newest"]) == (False, 7, 7)
        code, err = server.end(number)
    assert (code, err.splitlines()[-1]) == (0, "ended")
    listen("127.0.0.1", server.port).close()


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
