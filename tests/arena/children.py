"""What the spawned processes of these tests do."""

import os
import sys
import time

from mlxhog.arena import Arena, ArenaHandle, plan
from mlxhog.arena.requests import attach
from mlxhog.base.processes import end_by, follow_parent
from mlxhog.errors import ArenaError

WAIT_S = 60.0


def variable(lane, name):
    return os.environ.get(name)


def write_and_wait_to_be_killed(handle, ready):
    arena = Arena.from_handle(handle)
    arena.param("w")[:] = 7
    ready.send((os.getpid(), {"torch", "mlx.core", "transformers"} & set(sys.modules)))
    ready.poll(WAIT_S)


def map_the_served_descriptor_for_writing(path, done):
    try:
        about, fd, _ = attach(path)
        Arena.from_handle(ArenaHandle(fd, *about))
    except ArenaError as error:
        done.send(str(error))


def serve_and_wait_to_be_killed(path, ready):
    arena = Arena.create(plan({}, n_tickets=1))
    server = arena.serve(path)
    ready.send(server.path.exists())
    ready.poll(WAIT_S)


def echo(pipe):
    """In a worker: send back what comes, until the pipe is closed."""
    follow_parent()
    try:
        while True:
            pipe.send(pipe.recv())
    except EOFError:
        pass


def leave(code):
    """In a worker: end at once."""
    follow_parent()
    os._exit(code)


def meet_fault():
    """In a worker: an error that no restart cures."""
    follow_parent()
    end_by(TypeError("no such argument"))


def stay(pipe):
    """In a worker: never end by itself."""
    follow_parent()
    pipe.send(os.getpid())
    time.sleep(3600)
