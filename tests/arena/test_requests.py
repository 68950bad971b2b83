"""The socket of a run: requests, one line each way, and readers of its arena."""

import contextlib
import errno
import json
import os
import select
import socket
import socketserver
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from mlxhog.arena import Arena, requests
from mlxhog.arena.child import Child, Failed
from mlxhog.arena.requests import ControlRequest, Refused, RunServer, ask, attach, socket_path
from mlxhog.errors import ArenaError, RunError
from tests.arena import children
from tests.odd_disk import LACKS, odd_disk
from tests.pairs import each_of
from tests.threads import LIMIT_S, wait_until


def echo(request):
    if request.name == "refuse":
        request.refuse(Refused("not here", 3))
    else:
        request.answer(name=request.name, fields=request.fields)


@pytest.fixture
def server(tmp_path):
    with RunServer(socket_path(tmp_path)) as server:
        yield server


@contextlib.contextmanager
def polled(server, act=echo):
    """Let a thread look for requests until the block ends, as a supervisor does."""
    over = threading.Event()

    def poll():
        while not over.wait(0.005):
            for request in server.pop_requests():
                act(request)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def connected(server, line=b""):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(LIMIT_S)
    client.connect(os.fspath(server.path))
    if line:  # one that sends nothing may be dropped at once
        try:
            client.sendall(line)
        except OSError:
            client.close()
            raise
    return client


def reply(client):
    with client:
        return json.loads(client.makefile("rb").readline())


def is_served(folder):
    return ask(folder, "status", timeout_s=LIMIT_S)["name"] == "status"


def test_a_request_is_answered_and_a_line_that_is_none_is_told_why(server, tmp_path):
    assert server.path.stat().st_mode & 0o077 == 0  # only the user may open it
    with polled(server):
        answer = ask(tmp_path, "leave", worker=2, timeout_s=LIMIT_S)
        with pytest.raises(Refused, match="not here") as refused:
            ask(tmp_path, "refuse", timeout_s=LIMIT_S)
    assert answer == {"name": "leave", "fields": {"worker": 2}}
    assert refused.value.exit_code == 3
    for line, message in (
        (b"stop\n", "not a JSON object with the key 'request': Expecting value"),
        (b'{"worker": 1}\n', "not a JSON object with the key 'request'"),
        (b"x" * (requests.MAX_BYTES + 1), "more than 65,536 bytes"),
    ):
        wrong = reply(connected(server, line))
        assert wrong["ok"] is False
        assert message in wrong["error"]


def test_no_client_holds_up_another_whatever_it_does(server, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "SILENT_S", LIMIT_S)
    slow = connected(server, b'{"request": ')
    silent = [connected(server) for _ in range(20)]
    for line in (b"", b'{"request": ', b'{"request": "status"}\n'):
        connected(server, line).close()
    with polled(server):
        assert is_served(tmp_path)
        slow.sendall(b'"stop"}\n')  # a line in pieces is put together
        assert reply(slow)["name"] == "stop"
    for client in silent:
        client.close()
    monkeypatch.setattr(requests, "SILENT_S", 0.01)
    with connected(server) as client:
        assert client.recv(10) == b""  # dropped


def test_a_reader_that_asks_a_closed_server_gets_no_descriptor_not_even_a_reused_one(tmp_path):
    before = set(threading.enumerate())
    with (tmp_path / "arena").open("w") as arena:
        server = RunServer(socket_path(tmp_path), None, (arena.fileno(),))
        early = connected(server, b'{"request": "attach"}\n')
        late = connected(server, b'{"request": ')
        wait_until(lambda: len(set(threading.enumerate()) - before) == 3)  # it serves both
        _, fds, _, _ = socket.recv_fds(early, 1, 1)
        assert os.path.samestat(os.fstat(fds[0]), os.fstat(arena.fileno()))
        os.close(fds[0])
    server.close()
    with contextlib.ExitStack() as others:  # files that get the numbers of the closed ones
        for k in range(8):
            others.enter_context((tmp_path / f"secret {k}").open("w"))
        with early, late:
            late.sendall(b'"attach"}\n')
            assert socket.recv_fds(late, 1, 1)[:2] == (b"", [])


def test_a_server_without_descriptors_for_its_readers_leaves_nothing(tmp_path, monkeypatch):
    own, before = os.dup, set(os.listdir("/dev/fd"))
    refuses = Mock(side_effect=[own(0), OSError(errno.EMFILE, "Too many open files")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", refuses)
        with pytest.raises(OSError, match="Too many"):
            RunServer(socket_path(tmp_path), None, (0, 0))
    assert set(os.listdir("/dev/fd")) <= before  # others of before may be collected meanwhile
    assert list(tmp_path.iterdir()) == []


def test_a_long_answer_arrives_whole_and_a_client_that_does_not_read_holds_up_no_other(
    server, tmp_path
):
    text = "x" * 3_000_000  # more than a socket holds
    with polled(server, lambda request: request.answer(text=text)):
        slow = connected(server, b'{"request": "status"}\n')
        assert slow.recv(1, socket.MSG_PEEK)  # it is on its way
        assert ask(tmp_path, "status", timeout_s=LIMIT_S)["text"] == text
        assert reply(slow)["text"] == text


def test_nobody_at_the_socket_is_said_with_the_way_to_go_on(tmp_path):
    with pytest.raises(RunError, match="not running.*mlxhog train --resume"):
        ask(tmp_path, "stop")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(os.fspath(socket_path(tmp_path)))
    with pytest.raises(RunError, match="not running"):
        ask(tmp_path, "stop")
    with RunServer(socket_path(tmp_path)) as server, polled(server):
        assert is_served(tmp_path)
    assert not server.path.exists()


def test_a_run_that_ends_or_hangs_before_its_answer_is_an_error(server, tmp_path):
    with pytest.raises(RunError, match="has not answered in 0.2 s"):
        ask(tmp_path, "stop", timeout_s=0.2)
    with polled(server, ControlRequest.hang_up):
        with pytest.raises(RunError, match="has ended before it answered"):
            ask(tmp_path, "stop", timeout_s=LIMIT_S)


def test_a_reader_connects_while_the_arena_is_served_and_cannot_write(arena, tmp_path, monkeypatch):
    path = socket_path(tmp_path)
    with arena.serve(path):
        for _ in range(3):
            with Arena.connect(path) as reader:
                assert reader.readonly
        with Child() as child, pytest.raises(Failed, match="ArenaError: .*mapped read-only"):
            child.call(children.WAIT_S, children.map_the_served_descriptor_for_writing, path)
        monkeypatch.setattr(requests, "peer_uid", lambda connection: os.getuid() + 1)
        with pytest.raises(ArenaError, match="another user"):
            attach(path)
        with pytest.raises(RunError, match="another user"):
            ask(tmp_path, "stop", timeout_s=LIMIT_S)
    with pytest.raises(ArenaError, match="no socket"):
        Arena.connect(path)


def test_a_reader_is_told_why_a_run_refuses_it_and_that_a_run_has_just_ended(
    arena, tmp_path, monkeypatch
):
    def no_thread(server, request, address):
        select.select([request], [], [], LIMIT_S)
        raise RuntimeError("can't start new thread")

    path = socket_path(tmp_path)
    with arena.serve(path):
        with monkeypatch.context() as patch:
            patch.setattr(socketserver.ThreadingMixIn, "process_request", no_thread)
            with pytest.raises(ArenaError, match="attached here: the run can start no thread now"):
                Arena.connect(path)
        monkeypatch.setattr(RunServer, "send_fds", lambda *_: False)
        with pytest.raises(requests.NotServed, match="has just ended"):
            Arena.connect(path)


def test_the_socket_of_a_killed_server_is_stale_and_can_be_replaced(arena, tmp_path):
    path = socket_path(tmp_path)
    with Child() as killed:
        killed.call(children.WAIT_S, children.serve, path)
    with pytest.raises(ArenaError, match="stale"):
        Arena.connect(path)
    with arena.serve(path), Arena.connect(path) as reader:
        assert reader.readonly


def test_a_long_run_directory_gets_its_socket_in_a_private_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: os.fspath(tmp_path))
    assert socket_path(Path("/runs/a")) == Path("/runs/a/socket")
    long = tmp_path / ("d" * 100)
    path = socket_path(long)
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path == socket_path(long) != socket_path(tmp_path / ("e" * 100))
    path.parent.chmod(0o755)
    with pytest.raises(ArenaError, match="is not a directory of this user"):
        socket_path(long)


@each_of("number", [*LACKS["sockets"], "chmod"])
def test_a_run_on_a_disk_without_sockets_is_served_from_a_private_directory(
    arena, tmp_path, monkeypatch, number
):
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: os.fspath(tmp_path))

    def chmod(path, mode, real=os.chmod):
        if Path(path).is_relative_to(folder):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, mode)

    if number == "chmod":
        monkeypatch.setattr(os, "chmod", chmod)
        server = arena.serve(socket_path(folder))
    else:
        with odd_disk(folder, "sockets", number):
            server = arena.serve(socket_path(folder))
    with server:
        assert server.path.parent.stat().st_mode & 0o077 == 0
        assert socket_path(folder) == server.path
        with polled(server), Arena.connect(socket_path(folder)) as reader:
            assert reader.readonly
            assert is_served(folder)
    assert socket_path(folder) == folder / "socket"
    assert list(folder.iterdir()) == []


def test_another_user_is_hung_up_on(server, monkeypatch):
    monkeypatch.setattr(requests, "peer_uid", lambda connection: os.getuid() + 1)
    # It may hang up before the request is sent, or while the answer is awaited.
    with suppress(ConnectionError), connected(server, b'{"request": "stop"}\n') as client:
        assert client.recv(1) == b""
    assert server.pop_requests() == []
