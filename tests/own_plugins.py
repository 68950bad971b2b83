"""Files of a user's that a block executes, forgotten after it, and before it where that is asked.

A block that forgets those before it is as a process of its own, such as a later command's.
"""

import io
import sys
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from unittest import mock

from mlxhog.cli import main
from mlxhog.config import plugins
from mlxhog.config.components import REGISTRIES


@contextmanager
def own_plugins(*, forgets=False):
    """Forget after the block what it has executed; with `forgets`, in it what came before."""
    names = {name for name in sys.modules if name.startswith(plugins.PREFIX)}
    modules = {name: sys.modules[name] for name in names}  # pickles find their classes there
    with ExitStack() as stack:
        stack.callback(sys.modules.update, modules)  # a file may be executed again in the block
        stack.enter_context(mock.patch.dict(plugins._loaded, clear=forgets))
        if forgets:
            again = cache(plugins.say_once.__wrapped__)
            stack.enter_context(mock.patch.object(plugins, "say_once", again))
        for registry in REGISTRIES:
            stack.callback(_restore, registry, dict(registry._by_name))
            for name, choice in list(registry._by_name.items()):
                if forgets and choice.__module__.startswith(plugins.PREFIX):
                    del registry._by_name[name]
        yield


def _restore(registry, before):
    """What was known before, and what modules of the package have registered since: once."""
    since = {
        name: choice
        for name, choice in registry._by_name.items()
        if choice.__module__.startswith("mlxhog.")
    }
    registry._by_name.clear()
    registry._by_name.update({**before, **since})


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def mlxhog(folder, *words):
    """Run a command in a folder, as in a process that has executed no file of a user's."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), own_plugins(forgets=True), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as end:  # of --help
            code = end.code
    return Ended(code, out.getvalue(), err.getvalue())
