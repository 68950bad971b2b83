"""Which tests run by default; a cache of its own for every test, compiled code apart.

`python -m pytest` alone leaves out slow tests and has two processes; a path, `-m`, `-k`, `--lf` or
`--whole` runs all that it selects. With `--forbid-skips` only tests of Apple hardware may be left
out. Hypothesis draws the same few examples in every run, so that a verdict is about the change;
`--whole` or `CI` in the environment draws as many as each test asks for,
`--hypothesis-profile=random` others.
"""

import fcntl
import gc
import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from mlxhog.base import child_processes, float32, machine
from mlxhog.base.cache import user_cache_directory
from mlxhog.metal.emulator.engine import EmulatorEngine
from tests import kept
from tests.own_plugins import own_plugins
from tests.pairs import FEW

hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.register_profile("whole", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("few", derandomize=True, deadline=None, max_examples=FEW)
hypothesis.settings.load_profile("few")

# Threads of torch that have nothing to do sleep, as they do in workers: the cores are shared.
# NumPy needs none of its own; starting them is a fifth of what a process takes to start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
float32.disable_tf32()  # no product has been computed yet

MAY_SKIP = {"metal", "macos"}
_skipped = []


@pytest.fixture(scope="session")
def emulator_cache():
    """Compiled Metal kernels, named after their content: tests and sessions share them."""
    return kept.folder("emulator")


@pytest.fixture(scope="session")
def _caches(tmp_path_factory):
    """Paths for the caches of tests. `mktemp` looks at all that it made, so it is called once."""
    parent = tmp_path_factory.mktemp("caches")
    return (parent / str(n) for n in itertools.count())


@pytest.fixture(autouse=True)
def _own_cache(_caches, monkeypatch, emulator_cache):
    """Keep prepared corpora apart, so that no test depends on what another left behind."""
    cache = next(_caches)
    (cache / "mlxhog").mkdir(parents=True)
    (cache / "mlxhog" / "metal").symlink_to(emulator_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="session")
def kept_sotu():
    """The bundled corpus, prepared by the code of now: tokenizing it takes 8 s of a core."""
    from mlxhog import baselines, data
    from mlxhog.data import prepare
    from mlxhog.data.sotu import SOTU
    from mlxhog.data.tokenizers import SHIPPED

    digest = hashlib.sha256()
    for package in (data, baselines):
        for path in sorted(Path(package.__file__).parent.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.name} ".encode() + path.read_bytes())
    cache = kept.folder(f"sotu-{digest.hexdigest()[:20]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return prepare.prepare(SOTU, SHIPPED).train.path.parent


@pytest.fixture
def prepared_sotu(_own_cache, kept_sotu):
    """For tests whose runs or plans have the bundled corpus, and that ask nothing of its making."""
    shutil.copytree(kept_sotu, user_cache_directory() / kept_sotu.name)


@pytest.fixture(autouse=True, scope="module")
def _own_choices():
    """What a plugin adds is known to the tests of a module only."""
    with own_plugins():
        yield


@pytest.fixture(autouse=True, scope="session")
def _forked_workers(pytestconfig):
    """Workers start soon; a process that has looked at Apple's frameworks must not fork."""

    def context(method):
        from tests import forked

        assert method == "spawn"
        return forked.CONTEXT

    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux" and not pytestconfig.option.as_users:
            patch.setattr(child_processes, "get_context", context)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_crash_of_the_machine(pytestconfig):
    """Nothing waits for the disk: processes die here, and what they wrote stays.

    On a Mac `durable.flush` then ends in `os.fsync`, too, so tests that replace it hold there.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(fcntl, "F_FULLFSYNC", raising=False)
        if not pytestconfig.option.as_users:
            patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True, scope="session")
def _phases_end_soon(pytestconfig):
    """The process of a run looks often whether a phase is over; small runs have short ones."""
    from mlxhog.training.supervisor.session import Session

    with pytest.MonkeyPatch.context() as patch:
        if not pytestconfig.option.as_users:
            patch.setattr(Session, "poll_s", 0.01)
        yield


@pytest.fixture
def spawned_workers(monkeypatch):
    """Workers start as they do for users."""
    monkeypatch.setattr(child_processes, "get_context", multiprocessing.get_context)


class Here:
    """Stands in for `mlxhog.arena.child.Child`: computes in the process that starts it."""

    def __init__(self):
        self.pipe, self._end = multiprocessing.Pipe()
        self._result = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def start(self, function, *arguments):
        self._result = function(None, *arguments)
        self._end.send(None)

    def await_result(self, limit_s):
        self.pipe.recv()
        return self._result

    def close(self):
        self.pipe.close()
        self._end.close()


@pytest.fixture
def sides_here(monkeypatch):
    """Parity computes in this process; tests of its processes do without."""
    import torch

    monkeypatch.setattr("mlxhog.conformance.compute.Child", Here)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_apple_gpu():
    """For what a machine says or does for the lack of an Apple GPU."""
    if machine.here().apple_gpu:
        pytest.skip("this machine has what the case lacks: an Apple GPU")


@pytest.fixture(scope="session")
def new_emulator(emulator_cache):
    """Makes engines on the session's cache: `new_emulator(fuzz=3, threads=1)`."""

    def make(**options):
        return EmulatorEngine(cache=emulator_cache, **options)

    return make


@pytest.fixture(scope="session")
def clang():
    """A clang++ that knows `_Float16`."""
    names = ("clang++", *(f"clang++-{version}" for version in range(22, 15, -1)))
    how = {"input": b"_Float16 x;", "capture_output": True, "check": False}
    for name in filter(shutil.which, names):
        if not subprocess.run([name, "-x", "c++", "-fsyntax-only", "-"], **how).returncode:
            return name
    pytest.skip("no clang that knows _Float16: apt-get install clang-16")


@pytest.fixture(params=["g++", "clang"])
def compiler(request):
    """Each C++ compiler that must understand the emulator and the kernels."""
    name = request.param
    return name if name == "g++" else str(request.getfixturevalue("clang"))


@pytest.fixture
def emulator(new_emulator):
    return new_emulator()


def pytest_addoption(parser):
    for option, effect in (
        ("--forbid-skips", "fail if a test without the marker metal or macos was skipped"),
        ("--as-users", "spawn workers, flush to the disk and poll as programs of users do"),
        ("--whole", "run slow tests, too (a path does anyway), and all examples of hypothesis"),
    ):
        parser.addoption(option, action="store_true", help=effect)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads how many processes there are
def pytest_cmdline_main(config):
    """Without a choice of the user's: what is not slow, in two processes, which call this, too."""
    option = config.option
    chosen = (option.markexpr, option.keyword, option.whole, getattr(option, "lf", False))
    if config.args_source != pytest.Config.ArgsSource.TESTPATHS or any(chosen):
        return
    option.markexpr = "not slow"
    if (
        getattr(option, "numprocesses", 0) is None
        and option.dist == "no"
        and not (option.usepdb or option.trace or option.capture == "no")  # need the terminal
        and not hasattr(config, "workerinput")  # else each process would start two more
    ):
        option.numprocesses, option.dist = 2, "worksteal"


def pytest_report_header(config):
    if config.option.markexpr == "not slow":
        return "without the slow tests; --whole runs all"
    return None


def pytest_configure(config):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup, which programs respect
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also as a shell's background job
    whole = config.option.whole or "CI" in os.environ
    if whole and config.getoption("--hypothesis-profile", None) is None:
        hypothesis.settings.load_profile("whole")
    if not hasattr(config, "workerinput"):  # before the processes of pytest-xdist start
        kept.drop_old()
    gc.disable()  # while modules are imported and tests collected, which stay to the end


def pytest_collection_finish(session):
    gc.freeze()  # no later collection looks at them again
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    excused = MAY_SKIP & {marker.name for marker in item.iter_markers()}
    report.needless_skip = report.skipped and not excused and not hasattr(report, "wasxfail")
    return report


def pytest_runtest_logreport(report):
    """Once per report, in the process that has the terminal, whichever process ran the test."""
    if getattr(report, "needless_skip", False):  # a crash has a report of xdist
        _skipped.append(f"{report.nodeid}: {_reason(report)}")


def pytest_collectreport(report):
    if report.skipped:  # a whole file, before any marker is known
        _skipped.append(f"{report.nodeid}: {_reason(report)}")


def _reason(report):
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if session.config.getoption("--forbid-skips") and _skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.config.getoption("--forbid-skips") and _skipped:
        terminalreporter.section("skipped without need")
        for line in _skipped:
            terminalreporter.line(line)
