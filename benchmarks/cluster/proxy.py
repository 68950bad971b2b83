"""A TCP proxy on loopback that is as slow as a cable: rate, delay, unplugged for a while.

    async with Proxy(Link.parse("100Mbit:50ms"), target=("127.0.0.1", 8600)) as proxy:
        ...                      # connect to 127.0.0.1, proxy.port
        proxy.unplug()           # nothing arrives, no connection closes: a pulled cable
        proxy.plug()             # what waited arrives
        proxy.sent, proxy.received

All connections share the rate of their direction. A byte leaves when those before it have left, and
arrives a delay later. It carries only what is addressed to it: members of a Gloo group connect to
each other by addresses of their own, for which `cable.py` has namespaces.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from mlxhog.theory.simulator.links import Link

CHUNK = 16_384
"""Bytes that leave at once; a tenth of a delay at 1 Mbit/s is longer."""
MOST_WAITING = 64
"""Chunks of a connection that are under way; then its sender has to wait, as for a full window."""


@dataclass
class Direction:
    """One direction of a cable: when bytes leave, and how many have.

    Attributes:
        link: rate and delay.
        sent: bytes that have left.
        free_at_s: time at which the last byte will have left.
    """

    link: Link
    sent: int = 0
    free_at_s: float = 0.0

    def departs(self, n_bytes: int, now_s: float) -> float:
        """Take the cable for some bytes; returns the time at which the last has left."""
        self.free_at_s = max(now_s, self.free_at_s) + n_bytes / self.link.bytes_per_s
        self.sent += n_bytes
        return self.free_at_s


@dataclass
class Proxy:
    """A proxy to one address; use it as an asynchronous context.

    Attributes:
        link: rate and delay of each direction.
        target: host and port of the server behind it.
        host: that it listens on.
        port: that it listens on; 0 takes a free one.
    """

    link: Link
    target: tuple[str, int]
    host: str = "127.0.0.1"
    port: int = 0
    _there: Direction = field(init=False)
    _back: Direction = field(init=False)
    _plugged: asyncio.Event = field(init=False)
    _tasks: set[asyncio.Task[None]] = field(init=False, default_factory=set)
    _server: asyncio.Server = field(init=False)

    async def __aenter__(self) -> Self:
        """Listen."""
        self._there, self._back = Direction(self.link), Direction(self.link)
        self._plugged = asyncio.Event()
        self._plugged.set()
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close all connections."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def sent(self) -> int:
        """Bytes on their way to the target, or there."""
        return self._there.sent

    @property
    def received(self) -> int:
        """Bytes on their way back, or there."""
        return self._back.sent

    def unplug(self) -> None:
        """Pull the cable: nothing arrives, and neither side learns of it."""
        self._plugged.clear()

    def plug(self) -> None:
        """Plug it in again: what waited arrives."""
        self._plugged.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a server calls this in a task"
        self._tasks.add(task)
        try:
            with closing(writer):
                await self._plugged.wait()
                their_reader, their_writer = await asyncio.open_connection(*self.target)
                with closing(their_writer):
                    async with asyncio.TaskGroup() as both:
                        both.create_task(self._carry(reader, their_writer, self._there))
                        both.create_task(self._carry(their_reader, writer, self._back))
        except* OSError:
            pass  # one side has closed the connection: so does the other
        finally:
            self._tasks.discard(task)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction
    ) -> None:
        """Carry the bytes of a direction; the end of the stream arrives after them."""
        clock = asyncio.get_running_loop().time
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_WAITING)

        async def arrive() -> None:
            while True:
                at_s, chunk = await waiting.get()
                await asyncio.sleep(at_s - clock())
                await self._plugged.wait()
                if not chunk:
                    writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(arrive())
            chunk = b"."
            while chunk:
                chunk = await reader.read(CHUNK)
                await self._plugged.wait()
                left_s = way.departs(len(chunk), clock())
                await waiting.put((left_s + self.link.latency_s, chunk))
                await asyncio.sleep(left_s - clock())
