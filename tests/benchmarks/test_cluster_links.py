"""The proxy is as slow as its link, loses nothing, and an unplugged one closes nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest

from mlxhog.theory.simulator.links import Link

LIMIT_S = 120.0
FAST = Link(1e9)
TEXT = bytes(range(256)) * 800
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Any], Awaitable[None]]


@pytest.fixture(scope="module")
def proxies(load: Any) -> ModuleType:
    module: ModuleType = load("cluster.proxy")
    return module


def through(proxies: ModuleType, link: Link, client: Client) -> None:
    """Run a client whose connection leads through a proxy to a server that answers with it all."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        await writer.drain()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            target = server.sockets[0].getsockname()
            async with proxies.Proxy(link, target) as proxy:
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                await client(reader, writer, proxy)
                writer.close()

    async def limited() -> None:
        await asyncio.wait_for(run(), LIMIT_S)

    asyncio.run(limited())


def test_all_bytes_arrive_in_order_and_are_counted_in_both_directions(proxies: ModuleType) -> None:
    async def client(reader: Any, writer: Any, proxy: Any) -> None:
        writer.write(TEXT)
        writer.write_eof()
        assert await reader.read() == TEXT
        assert (proxy.sent, proxy.received) == (len(TEXT), len(TEXT))

    through(proxies, FAST, client)


def test_bytes_are_never_sooner_than_rate_and_delay_allow(proxies: ModuleType) -> None:
    link = Link(bytes_per_s=1e6, latency_s=0.05)
    began = time.monotonic()

    async def client(reader: Any, writer: Any, proxy: Any) -> None:
        writer.write(TEXT)
        writer.write_eof()
        await reader.read()

    through(proxies, link, client)
    assert time.monotonic() - began >= 2 * link.transfer_s(len(TEXT))


def test_connections_share_the_rate_of_a_direction(proxies: ModuleType) -> None:
    way = proxies.Direction(Link(1000.0))
    assert way.departs(500, now_s=10.0) == pytest.approx(10.5)
    assert way.departs(500, now_s=10.0) == pytest.approx(11.0)
    assert way.departs(500, now_s=20.0) == pytest.approx(20.5)
    assert way.sent == 1500


def test_a_pulled_cable_carries_nothing_and_closes_nothing_until_it_is_plugged_in(
    proxies: ModuleType,
) -> None:
    async def client(reader: Any, writer: Any, proxy: Any) -> None:
        proxy.unplug()
        writer.write(TEXT)
        writer.write_eof()
        answer = asyncio.create_task(reader.read())
        await asyncio.wait([answer], timeout=0.2)
        assert not answer.done()
        assert proxy.received == 0
        proxy.plug()
        assert await answer == TEXT

    through(proxies, FAST, client)


def test_a_target_that_refuses_ends_the_connection(proxies: ModuleType) -> None:
    async def run() -> None:
        async with await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0) as server:
            closed = server.sockets[0].getsockname()
        async with proxies.Proxy(FAST, closed) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""
            writer.close()

    asyncio.run(run())


# -- namespaces ------------------------------------------------------------------------------------

RECEIVE = """
import socket, sys
with socket.create_server((sys.argv[1], 8600)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    with connection:
        n = 0
        while chunk := connection.recv(65536):
            n += len(chunk)
            print(n, flush=True)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 8600), timeout=100) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def cables(load: Any) -> ModuleType:
    module: ModuleType = load("cluster.cable")
    if (why := module.lacking()) is not None:
        pytest.skip(why)
    return module


def test_machines_reach_each_other_through_the_cable_no_sooner_than_it_allows(
    cables: ModuleType,
) -> None:
    link, n_bytes = Link(2e6, 0.02), 400_000
    with cables.Cable(link, machines=2) as cable:
        words = [sys.executable, "-c"]
        pipe = {"stdout": subprocess.PIPE}
        with cable.popen(0, [*words, RECEIVE, cable.address(0)], **pipe) as receiver:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n"
            began = time.monotonic()
            with cable.popen(1, [*words, SEND, cable.address(0), str(n_bytes)]) as sender:
                assert sender.wait(LIMIT_S) == 0
            counts = [int(line) for line in receiver.stdout]
            assert counts[-1] == n_bytes
            assert time.monotonic() - began >= link.transfer_s(n_bytes)
        assert cable.sent[1] >= n_bytes
        assert cable.sent[0] < n_bytes / 2  # acknowledgements


def test_an_unplugged_machine_is_not_reached(cables: ModuleType) -> None:
    with cables.Cable(FAST, machines=2) as cable:
        cable.unplug(1)
        words = [sys.executable, "-c", SEND.replace("timeout=100", "timeout=0.5")]
        with cable.popen(1, [*words, cable.address(0), "1"], stderr=subprocess.PIPE) as sender:
            _, errors = sender.communicate(timeout=LIMIT_S)
        assert sender.returncode
        assert "TimeoutError" in errors
        assert cable.sent == (0, 0)
