"""Servers in processes of their own, and clients that write their bytes themselves."""

from __future__ import annotations

import json
import select
import signal
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from tests.another_process import Program

MLX = "--backend=mlx:cpu"  # starts in a third of the time that torch takes
START_S = 120
END_S = 120


@dataclass
class Server:
    """A running `mlxhog serve` or `board`: its process, the object that it printed, a client."""

    process: Program
    told: dict[str, Any]
    http: httpx.Client

    @property
    def url(self):
        """As clients of OpenAI want it: with /v1."""
        return self.told["url"]

    @property
    def root(self):
        return self.url.removesuffix("/v1")

    @property
    def port(self):
        return int(self.root.rpartition(":")[2])

    @property
    def model(self):
        return self.told["model"]

    def openai(self):
        """A client of OpenAI; it is closed with the server."""
        return openai.OpenAI(
            base_url=self.url, api_key="none", max_retries=0, http_client=self.http
        )

    def health(self):
        return self.http.get(f"{self.root}/health").json()

    def end(self, number=signal.SIGINT):
        """Send a signal; returns exit code and what it printed to stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=END_S)
        return self.process.returncode, err


@contextmanager
def serving(model, *words, command="serve", cwd=None, **environment):
    """A server on a free port, until the block ends."""
    given = [command, str(model), "--port", "0", "--json", *words]
    process = Program(*given, cwd=cwd, **environment)
    http = httpx.Client(verify=False, timeout=START_S)  # which takes no certificates
    try:
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            raise AssertionError(f"the server did not start: {process.communicate()[1]}")
        yield Server(process, json.loads(line), http)
    finally:
        http.close()
        process.terminate()
        process.communicate(timeout=END_S)  # which kills it then


@contextmanager
def connected(server):
    """A connection to write any bytes to."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=START_S) as connection:
        yield connection


def head(path, *lines, method="POST"):
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def post(path, body, *lines):
    length = f"Content-Length: {len(body)}"
    return head(path, length, "Content-Type: application/json", *lines) + body


def answered(connection):
    """Status and everything else until the server closes, without what a reset cuts off."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return int(received.split(b" ", 2)[1]), received
