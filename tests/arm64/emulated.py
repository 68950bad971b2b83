"""The native operators of an arm64 machine in place of this one's: a plugin of pytest.

    MLXHOG_ARM64="qemu-aarch64-static DRIVER" python -m pytest -p tests.arm64.emulated tests/metal

Every call of a function that the driver knows goes there with its arrays, and what it has written
comes back: the tests of an operator then hold, or not, for arm64. The format is in
`include/nanobind/nanobind.h`. The session fails if a function with arguments was never called.
"""

import functools
import os
import shlex
import struct
import subprocess
import threading

import numpy as np
import pytest

from mlxhog import _native

ERRORS = {b"v": ValueError, b"t": TypeError, b"m": MemoryError}
MOST_CASES = 4
"""Of a test: its cases differ in shapes, of which an emulated instruction takes long.

Cases with a parameter `run` differ in the operators that they call; all of them run. Of those that
are a `tests.models.operators.Case` two of each operator run."""


class Emulated:
    """A driver that runs, and the functions it knows; a method's name is CLASS.NAME.

    Args:
        command: of the driver.

    Concurrency: calls from several threads take turns.
    """

    def __init__(self, command):
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to = self._process.stdin
        self._from = self._process.stdout
        self._lock = threading.Lock()
        self.called = set()
        self.is_property = {}
        self.operators = set()  # functions of arguments
        for _ in range(self._number("I")):
            name = self._text()
            self.is_property[name] = self._number("?")
            if self._number("?"):
                self.operators.add(name)

    def close(self):
        """End the driver."""
        self._to.close()
        self._process.wait(60)
        self._from.close()

    def call(self, name, *given, **named):
        """Call a function there; arrays it writes are written here."""
        with self._lock:
            self.called.add(name)
            arrays = []
            request = [_text(name), struct.pack("<I", len(given))]
            request += [_value(value, arrays) for value in given]
            request.append(struct.pack("<I", len(named)))
            request += [_text(key) + _value(value, arrays) for key, value in named.items()]
            self._to.write(b"".join(request))
            self._to.flush()
            return self._answer(arrays)

    def _answer(self, arrays):
        kind = self._read(1)
        if kind != b"k":
            raise ERRORS[kind](self._text())
        result = self._result()
        for _ in range(self._number("I")):
            array = arrays[self._number("I")]
            data = bytearray(self._read(array.nbytes))
            array[...] = np.ndarray(array.shape, array.dtype, data)
        return result

    def _result(self):
        tag = self._read(1)
        if tag == b"l":
            return tuple(self._result() for _ in range(self._number("I")))
        if tag == b"s":
            return self._text()
        return (
            None if tag == b"n" else self._number({b"b": "?", b"i": "q", b"d": "d", b"o": "I"}[tag])
        )

    def _read(self, n):
        data = self._from.read(n)
        assert len(data) == n, f"the driver ended with {self._process.wait(60)}"
        return data

    def _number(self, form):
        return struct.unpack(f"<{form}", self._read(struct.calcsize(form)))[0]

    def _text(self):
        return self._read(self._number("I")).decode()


class Remote:
    """An object of the driver."""

    def __init__(self, number):
        self.number = number


def _text(text):
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _value(value, arrays):
    if value is None:
        return b"n"
    if isinstance(value, np.ndarray):
        return _array(value, arrays)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return b"l" + struct.pack("<I", len(value)) + b"".join(_value(x, arrays) for x in value)
    if isinstance(value, str):
        return b"s" + _text(value)
    forms = {bool: (b"b", "?"), int: (b"i", "q"), float: (b"d", "d")}
    if isinstance(value, Remote):
        return b"o" + struct.pack("<I", value.number)
    if type(value) not in forms:
        raise TypeError(f"incompatible function arguments: {type(value)}")
    tag, form = forms[type(value)]
    return tag + struct.pack(f"<{form}", value)


def _array(array, arrays):
    for k, other in enumerate(arrays):  # one memory there, too
        if array.nbytes and (array.ctypes.data, array.nbytes) == (other.ctypes.data, other.nbytes):
            return b"r" + struct.pack("<I", k)
    if not array.flags.c_contiguous:
        raise TypeError("incompatible function arguments: an array with gaps")
    arrays.append(array)
    head = struct.pack("<BB", array.itemsize, array.ndim) + struct.pack(
        f"<{array.ndim}q", *array.shape
    )
    return b"a" + array.dtype.kind.encode() + head + array.tobytes()


def _class(emulated, name, members):
    def method(member):
        def call(self, *given, **named):
            return emulated.call(f"{name}.{member}", self, *given, **named)

        return property(call) if emulated.is_property[f"{name}.{member}"] else call

    def init(self, *given, **named):
        Remote.__init__(self, emulated.call(f"{name}.__init__", *given, **named))

    made = {member: method(member) for member in members if member != "__init__"}
    return type(name, (Remote,), {**made, "__init__": init})


def install(emulated):
    """Put the driver's functions and classes in the place of the native module's."""
    classes = {}
    for name in emulated.is_property:
        place, _, last = name.rpartition(".")
        if place in ("", "ops"):
            module = _native.ops if place else _native
            setattr(module, last, functools.partial(emulated.call, name))
        else:
            classes.setdefault(place, []).append(last)
    for name, members in classes.items():
        setattr(_native, name, _class(emulated, name, members))


_here = []


def pytest_configure(config):
    emulated = Emulated(shlex.split(os.environ["MLXHOG_ARM64"]))
    _here.append(emulated)
    install(emulated)
    from tests.models import twins

    for name, twin in list(twins.TWINS.items()):  # one framework is enough to reach the operators
        if (twin.framework, twin.kernels) != ("torch", "native"):
            del twins.TWINS[name]


def pytest_collection_modifyitems(items):
    """Keep some cases of each test, and of batches that are decoded those of small models.

    41 rows of the large model take most of a minute.
    """
    by_test = {}
    for item in items:
        of_operators = "run" in getattr(getattr(item, "callspec", None), "params", {})
        name = item.nodeid if of_operators else item.nodeid.partition("[")[0]
        by_test.setdefault(name, []).append(item)
        _, cases = getattr(getattr(item, "obj", None), "cases", (None, []))
        by_operator = {}
        for label, values in cases:
            if values.get("name") != "three threads" or "rows" not in values:
                operator = getattr(values.get("case"), "op", "")
                by_operator.setdefault(operator, []).append((label, values))
        cases[:] = [
            case
            for operator, same in by_operator.items()
            for case in _spread(same, 2 if operator else MOST_CASES)
        ]
    items[:] = [item for same in by_test.values() for item in _spread(same)]


def _spread(cases, most=MOST_CASES):
    """The first of some cases, the last, and others between."""
    if len(cases) <= most:
        return cases
    step = (len(cases) - 1) / (most - 1)
    return [cases[round(k * step)] for k in range(most)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if _here[0].operators - _here[0].called:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    missing = sorted(_here[0].operators - _here[0].called)
    terminalreporter.line(f"{len(_here[0].called)} functions called on arm64, never: {missing}")


def pytest_unconfigure(config):
    _here[0].close()
