"""Commands in a process of their own that has imported nothing of a test: see `tests/forked.py`."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest import mock

from tests.forked import CONTEXT, join_server


class Running:
    """A function that runs in another process, with the methods of a `Popen`."""

    def __init__(self, function, *arguments):
        """Start it; workers that it starts come from the server as well."""
        self._process = CONTEXT.Process(target=_answering, args=(function, arguments))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            with suppress(ProcessLookupError):  # its end is not noted yet
                os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Program(Running):
    """`mlxhog` with some words, whose output is read from pipes while it runs."""

    def __init__(self, *words, cwd=None, before=None, **environment):
        """Start it in a folder, with more variables of the environment.

        The process calls `before`, if any, before the command.
        """
        (out, out_end), (err, err_end) = (CONTEXT.Pipe(duplex=False) for _ in range(2))
        with mock.patch.dict(os.environ, environment):
            super().__init__(_program, cwd or Path.cwd(), before, words, (out_end, err_end))
        self.stdout, self.stderr = (
            open(os.dup(pipe.fileno()), encoding="utf-8", errors="replace") for pipe in (out, err)
        )
        for pipe in (out, out_end, err, err_end):
            pipe.close()

    def communicate(self, timeout=None):
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(_rest, stream) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return texts[0].result(), texts[1].result()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in (self.stdout, self.stderr):
            stream.close()
        self.wait()


def _rest(stream):
    """What is still to be read; nothing from a stream that is closed."""
    if stream.closed:
        return ""
    with stream:
        return str(stream.read())


def _answering(function, arguments):
    """In the process: call a function that signals reach, as they reach a program's."""
    join_server()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the server holds some back
    function(*arguments)


def _program(folder, before, words, ends):
    from mlxhog.__main__ import main

    os.chdir(folder)
    for descriptor, end in enumerate(ends, start=1):
        os.dup2(end.fileno(), descriptor)
        end.close()
    if before is not None:
        before()
    sys.argv[1:] = words
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)
