"""Handing the descriptor to readers that come later."""

import os
import signal
import socket
from pathlib import Path

import pytest

from mlxhog.arena import Arena, plan, requests
from mlxhog.arena.requests import RunServer, attach, socket_path
from mlxhog.errors import ArenaError
from tests.arena import children
from tests.arena.test_arena import received, spawn


@pytest.fixture
def arena():
    with Arena.create(plan({}, n_tickets=1), run_id="served") as arena:
        yield arena


def test_a_reader_connects_while_the_arena_is_served_and_not_after(arena, tmp_path):
    path = tmp_path / "socket"
    with arena.serve(path):
        for _ in range(3):
            with Arena.connect(path) as reader:
                assert (reader.run_id, reader.readonly) == ("served", True)
    with pytest.raises(ArenaError, match="no socket"):
        Arena.connect(path)


def test_what_is_served_cannot_be_mapped_for_writing(arena, tmp_path):
    path = tmp_path / "socket"
    with arena.serve(path):
        process, pipe = spawn(children.map_the_served_descriptor_for_writing, path)
        assert "mapped read-only" in received(process, pipe)


def test_another_user_gets_no_descriptor(arena, tmp_path, monkeypatch):
    path = tmp_path / "socket"
    monkeypatch.setattr(requests, "peer_uid", lambda connection: os.getuid() + 1)
    with arena.serve(path), pytest.raises(ArenaError, match="another user"):
        attach(path)
    monkeypatch.undo()
    ours = os.getuid()
    strangers = iter([ours + 1, ours])  # the server sees a stranger, the reader its own user
    monkeypatch.setattr(requests, "peer_uid", lambda connection: next(strangers))
    with arena.serve(path), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.fspath(path))
        connection.settimeout(children.WAIT_S)
        assert connection.recv(100) == b""


def test_the_socket_of_a_killed_server_is_stale_and_can_be_replaced(arena, tmp_path):
    path = tmp_path / "socket"
    process, pipe = spawn(children.serve_and_wait_to_be_killed, path)
    assert pipe.poll(children.WAIT_S)
    assert pipe.recv() is True
    os.kill(process.pid, signal.SIGKILL)
    process.join(children.WAIT_S)
    assert requests.is_stale(path)
    with pytest.raises(ArenaError, match="stale"):
        Arena.connect(path)
    with arena.serve(path), Arena.connect(path) as reader:
        assert reader.run_id == "served"


def test_a_socket_that_is_served_cannot_be_taken(arena, tmp_path):
    with arena.serve(tmp_path / "socket"):
        with pytest.raises(ArenaError, match="another process"):
            RunServer(tmp_path / "socket")


def test_a_long_run_directory_gets_its_socket_in_a_private_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(requests.tempfile, "gettempdir", lambda: os.fspath(tmp_path))
    assert socket_path(Path("/runs/a")) == Path("/runs/a/socket")
    long = tmp_path / ("d" * 100)
    path = socket_path(long)
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path == socket_path(long)
    assert path != socket_path(tmp_path / ("e" * 100))
    path.parent.chmod(0o755)
    with pytest.raises(ArenaError, match="is not a directory of this user"):
        socket_path(long)
