"""What the spawned processes of these tests do."""

import os
import sys
import time

from mlxhog.arena import Arena, ArenaHandle, plan
from mlxhog.arena.requests import attach
from mlxhog.base.processes import end_by, follow_parent

WAIT_S = 120.0


def variable(lane, name):
    return os.environ.get(name)


def write(lane):
    """Write to the arena; what was imported that takes long."""
    lane.arena.param("w")[:] = 7
    return {"torch", "mlx.core", "transformers"} & set(sys.modules)


def map_the_served_descriptor_for_writing(lane, path):
    about, fd, _ = attach(path)
    Arena.from_handle(ArenaHandle(fd, *about))


def serve(lane, path):
    lane.store["server"] = Arena.create(plan({}, n_tickets=1)).serve(path)


def echo(pipe):
    """In a worker: send back what comes, until the pipe is closed."""
    follow_parent()
    try:
        while True:
            pipe.send(pipe.recv())
    except EOFError:
        pass


def leave(_, code):
    """In a worker: end at once."""
    follow_parent()
    os._exit(code)


def meet_fault(_):
    """In a worker: an error that no restart cures."""
    follow_parent()
    end_by(TypeError("no such argument"))


def stay(pipe):
    """In a worker: never end by itself."""
    follow_parent()
    pipe.send(os.getpid())
    time.sleep(3600)
