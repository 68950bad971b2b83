"""The arena on macOS: its own tests pass there, and a sandbox costs a note and nothing else."""

import errno
import json
import os
import socket
from unittest import mock

import pytest

from mlxhog.arena import Arena, plan, segment
from tests.arena import children
from tests.arena.test_arena import small_layout
from tests.macos.simulation import linux_only, simulated

# The extension module asks /proc, as built for Linux; `test_process_life.py` has its macOS branch.
START_TIME = "test_a_start_time_tells_a_process_from_its_successor_and_from_none"


@pytest.mark.slow
@linux_only
def test_the_arenas_own_tests_pass_in_the_simulation():
    files = [f"tests/arena/test_{name}.py" for name in ("arena", "requests", "workers")]
    files.append("tests/metal/test_wrappable.py")
    options = ("-pno:cacheprovider", f"--deselect=tests/arena/test_workers.py::{START_TIME}")
    run = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    printed = simulated(run, *options, *files, timeout_s=None)
    assert "1 deselected" in printed
    assert "skipped" not in printed
    assert all(f"{file} ." in printed for file in files)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENAMETOOLONG, errno.ENOENT])
def test_any_way_of_refusing_shared_memory_leads_to_a_file(number, tmp_path, monkeypatch):
    refusal = OSError(number, os.strerror(number))
    monkeypatch.setattr(segment._posixshmem, "shm_open", mock.Mock(side_effect=refusal))
    with Arena.create(small_layout(), fallback=tmp_path) as arena:
        assert f"({os.strerror(number)}" in arena.note
    assert not list(tmp_path.iterdir())
    full = OSError(errno.EMFILE, "too many open files")  # no refusal, so no file hides it
    monkeypatch.setattr(segment._posixshmem, "shm_open", mock.Mock(side_effect=full))
    with pytest.raises(OSError, match="too many"):
        Arena.create(small_layout())


def test_the_readers_receipt_keeps_the_connection_open_until_then(tmp_path):
    with Arena.create(plan({}, n_tickets=1)) as arena, arena.serve(tmp_path / "s"):
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(os.fspath(tmp_path / "s"))
            reader.settimeout(children.WAIT_S)
            reader.sendall(b'{"request": "attach"}\n')
            begin, fds, _, _ = socket.recv_fds(reader, 1, 1)
            file = reader.makefile("rb")
            file.read(json.loads(begin + file.readline())["bytes"])
            reader.settimeout(0.2)
            with pytest.raises(TimeoutError):
                reader.recv(1)  # still open: macOS may drop a descriptor that is under way
            reader.settimeout(children.WAIT_S)
            reader.send(b"!")
            assert reader.recv(1) == b""
            os.close(fds[0])
